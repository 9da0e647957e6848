//! Chromium without a screen, driven as a person would use it.

use std::cell::RefCell;
use std::panic::{AssertUnwindSafe, resume_unwind};
use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, Instant};

use fantoccini::elements::Element;
use fantoccini::error::CmdError;
use fantoccini::wd::WindowHandle;
use fantoccini::{Client, ClientBuilder, Locator};
use futures_util::FutureExt;
use hyper_util::client::legacy::connect::HttpConnector;
use relay_lab::needs::program;
use relay_lab::process::{Process, clean};
use relay_lab::site::{PASSWORD, Site};
use relay_lab::{PATIENCE, say};
use serde_json::{Value, json};

/// The port of chromedriver in the site's namespace.
const DRIVER: u16 = 9515;
/// Nothing that a test does takes this long, all together.
const LIMIT: Duration = Duration::from_secs(240);

/// Returns from the test when there is no browser here.
macro_rules! needs_browser {
    () => {
        use relay_lab::needs::Need;
        relay_lab::needs!(
            Need::Namespaces,
            Need::Program("chromium"),
            Need::Program("chromedriver"),
            Need::Program("unshare"),
        );
    };
}
pub(crate) use needs_browser;

/// Opens browsers.
pub(crate) struct Browsers {
    flags: Vec<String>,
    opened: RefCell<Vec<Browser>>,
}

/// A browser with cookies of its own.
#[derive(Clone)]
pub(crate) struct Browser {
    pub(crate) client: Client,
    who: String,
}

/// Runs a test with browsers on the site's machine. Pages of a test that fails are left as
/// pictures beside the others.
pub(crate) fn browse(
    name: &str,
    site: &Site,
    flags: &[&str],
    test: impl AsyncFnOnce(&Browsers) + Send,
) {
    let _driver = start_driver(site);
    site.machine.namespace.enter(|| {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .expect("runtime");
        runtime.block_on(async {
            let browsers = Browsers {
                flags: flags.iter().map(|flag| (*flag).to_owned()).collect(),
                opened: RefCell::default(),
            };
            let work = async {
                let done = tokio::time::timeout(LIMIT, test(&browsers)).await;
                done.expect("the test takes too long");
            };
            let done = AssertUnwindSafe(work).catch_unwind().await;
            for browser in browsers.opened.take() {
                if done.is_err() {
                    browser.tell(name).await;
                }
                let _ = browser.client.close().await;
            }
            if let Err(panic) = done {
                say(site.server.output());
                resume_unwind(panic);
            }
        });
    });
}

/// Chromedriver in a process namespace: no browser outlives it, however the test ends.
fn start_driver(site: &Site) -> Process {
    let mut command = clean(Command::new("unshare"), site.folder());
    command
        .args(["--pid", "--fork", "--kill-child", "--mount-proc"])
        .arg(program("chromedriver").unwrap_or_else(|reason| panic!("{reason}")))
        .arg(format!("--port={DRIVER}"))
        .env("TMPDIR", site.folder());
    let driver = Process::outside("chromedriver", &site.machine, command);
    let local = site.machine.ipv4.into();
    let up = relay_lab::poll(PATIENCE, || {
        site.machine.listens(local, DRIVER).then_some(())
    });
    assert!(up.is_some(), "{}", driver.output());
    driver
}

impl Browsers {
    /// Opens one, for somebody.
    pub(crate) async fn open(&self, who: &str) -> Browser {
        let start = Instant::now();
        let mut flags = vec![
            "--headless=new",
            "--no-sandbox",
            "--disable-gpu",
            "--disable-dev-shm-usage",
            "--disable-background-networking",
            "--disable-component-update",
            "--disable-extensions",
            "--disable-sync",
            "--no-first-run",
            "--hide-scrollbars",
            "--window-size=1280,900",
        ];
        flags.extend(self.flags.iter().map(String::as_str));
        let binary = program("chromium").unwrap_or_else(|reason| panic!("{reason}"));
        let wanted = json!({
            "browserName": "chrome",
            "goog:chromeOptions": { "args": flags, "binary": binary },
        });
        let Value::Object(wanted) = wanted else {
            unreachable!()
        };
        let client = ClientBuilder::new(HttpConnector::new())
            .capabilities(wanted)
            .connect(&format!("http://127.0.0.1:{DRIVER}"))
            .await
            .expect("a browser");
        say(format_args!("a browser after {:.1?}", start.elapsed()));
        let browser = Browser {
            client,
            who: who.to_owned(),
        };
        self.opened.borrow_mut().push(browser.clone());
        browser
    }

    /// Opens one and signs in at the dashboard.
    pub(crate) async fn signed_in(&self, site: &Site, who: &str) -> Browser {
        let browser = self.open(who).await;
        browser.goto(&site.dashboard("/login")).await;
        browser.sign_in(who).await;
        browser.until_url("/workspaces").await;
        browser
    }
}

impl Browser {
    /// Goes to an address and waits until the page is loaded.
    pub(crate) async fn goto(&self, url: &str) {
        let done = self.client.goto(url).await;
        done.unwrap_or_else(|error| panic!("{}: {url}: {error}", self.who));
    }

    /// The address of the page.
    pub(crate) async fn url(&self) -> String {
        self.client.current_url().await.expect("URL").into()
    }

    /// Waits for an address with this in it.
    pub(crate) async fn until_url(&self, part: &str) {
        self.until(part, async || self.url().await.contains(part))
            .await;
    }

    /// Waits until something is so; says where the browser is when it never is.
    pub(crate) async fn until(&self, what: &str, is: impl AsyncFn() -> bool) {
        let start = Instant::now();
        while !is().await {
            if start.elapsed() > PATIENCE {
                let (url, text) = (self.url().await, self.text("body").await);
                panic!("{}: never: {what}\nat {url}\n{text}", self.who);
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// The element, once it is there.
    pub(crate) async fn find(&self, css: &str) -> Element {
        let wait = self.client.wait().at_most(PATIENCE);
        let found = wait.every(Duration::from_millis(20));
        match found.for_element(Locator::Css(css)).await {
            Ok(element) => element,
            Err(error) => {
                let (url, source) = (self.url().await, self.client.source().await);
                panic!("{}: no {css}: {error}\nat {url}\n{source:?}", self.who)
            }
        }
    }

    /// Clicks the element; again when the page changed meanwhile.
    pub(crate) async fn click(&self, css: &str) {
        self.again(async || self.find(css).await.click().await)
            .await;
    }

    /// Writes into a field.
    pub(crate) async fn fill(&self, css: &str, text: &str) {
        self.again(async || {
            let field = self.find(css).await;
            field.clear().await?;
            field.send_keys(text).await
        })
        .await;
    }

    /// The text of the element as it is shown.
    pub(crate) async fn text(&self, css: &str) -> String {
        self.again(async || self.find(css).await.text().await).await
    }

    /// Waits until the element's text has this in it.
    pub(crate) async fn until_text(&self, css: &str, part: &str) {
        let what = format!("{part:?} in {css}");
        self.until(&what, async || self.text(css).await.contains(part))
            .await;
    }

    /// A live page replaces elements while they are looked at.
    async fn again<T>(&self, act: impl AsyncFn() -> Result<T, CmdError>) -> T {
        let start = Instant::now();
        loop {
            match act().await {
                Ok(value) => return value,
                Err(error) if start.elapsed() > PATIENCE => panic!("{}: {error}", self.who),
                Err(_) => tokio::time::sleep(Duration::from_millis(20)).await,
            }
        }
    }

    /// Fills the login page in, and sends it.
    pub(crate) async fn sign_in(&self, who: &str) {
        self.fill("#email", &format!("{who}@example.com")).await;
        self.fill("#password", PASSWORD).await;
        self.click("form button.primary").await;
    }

    /// What the page's own script gets from an address: `{status, type, text}` or `{error}`.
    pub(crate) async fn fetch(&self, url: &str, options: Value) -> Value {
        const SCRIPT: &str = "
            const [url, options, done] = arguments;
            fetch(url, options).then(async (answer) => done({
                status: answer.status, type: answer.type, url: answer.url,
                redirected: answer.redirected, text: await answer.text(),
            })).catch((error) => done({ error: String(error) }));";
        let done = self.client.execute_async(SCRIPT, vec![json!(url), options]);
        done.await.expect("fetch")
    }

    /// What comes back of texts that the page's own script sends over a WebSocket, or why none
    /// opened.
    pub(crate) async fn echo(&self, url: &str, texts: &[&str]) -> Value {
        const SCRIPT: &str = "
            const [url, texts, done] = arguments;
            const got = [];
            const socket = new WebSocket(url);
            socket.onopen = () => texts.forEach((text) => socket.send(text));
            socket.onmessage = (message) => {
                got.push(message.data);
                if (got.length === texts.length) { done(got); socket.close(); }
            };
            socket.onerror = () => done('refused');
            socket.onclose = () => done('closed');";
        let done = self
            .client
            .execute_async(SCRIPT, vec![json!(url), json!(texts)]);
        done.await.expect("WebSocket")
    }

    /// Clicks what opens a tab, and goes there. Gives the tab that one was at.
    pub(crate) async fn opens_tab(&self, css: &str) -> WindowHandle {
        let before = self.client.window().await.expect("tab");
        self.click(css).await;
        let new = async || {
            let tabs = self.client.windows().await.expect("tabs");
            tabs.into_iter().find(|tab| *tab != before)
        };
        self.until("a new tab", async || new().await.is_some())
            .await;
        let tab = new().await.expect("tab");
        self.client.switch_to_window(tab).await.expect("tab");
        before
    }

    /// Closes the tab and goes back to another.
    pub(crate) async fn close_tab(&self, back: WindowHandle) {
        self.client.close_window().await.expect("tab");
        self.client.switch_to_window(back).await.expect("tab");
    }

    /// Makes the window as wide and high as this.
    pub(crate) async fn resize(&self, (width, height): (u64, u64)) {
        let [width, height] = [width, height].map(|side| u32::try_from(side).expect("a size"));
        let done = self.client.set_window_size(width, height).await;
        done.expect("resize");
    }

    /// Whether nothing of the page is beside the window.
    pub(crate) async fn fits(&self) -> bool {
        const SCRIPT: &str = "return document.documentElement.scrollWidth <= innerWidth";
        self.client.execute(SCRIPT, vec![]).await.expect("width") == json!(true)
    }

    /// Keeps a picture of the page.
    pub(crate) async fn picture(&self, name: &str) {
        let png = self.client.screenshot().await.expect("screenshot");
        let folder = pictures();
        std::fs::create_dir_all(&folder).expect("folder");
        std::fs::write(folder.join(format!("{name}.png")), png).expect("picture");
    }

    /// Keeps what there is to see of a test that failed.
    async fn tell(&self, name: &str) {
        let url = self.client.current_url().await;
        const STATE: &str = "return [document.visibilityState, document.readyState, \
             performance.getEntriesByType('resource').map((e) => [e.name, e.responseStatus])]";
        let state = self.client.execute(STATE, vec![]).await;
        say(format_args!("{} is at {url:?}: {state:?}", self.who));
        if let Ok(png) = self.client.screenshot().await {
            let _ = std::fs::create_dir_all(pictures());
            let file = format!("failed-{name}-{}.png", self.who);
            let _ = std::fs::write(pictures().join(file), png);
        }
    }
}

/// `target/screenshots`.
fn pictures() -> PathBuf {
    let test = std::env::current_exe().expect("path of the test");
    let target = test.ancestors().nth(3).expect("target folder");
    target.join("screenshots")
}
