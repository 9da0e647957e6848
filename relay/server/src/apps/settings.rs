//! The deployment's choices about apps in a browser.

use std::fmt;
use std::str::FromStr;

use url::Url;

use super::access::PathPolicy;
use super::cookies;
use super::forwarded::Trust;
use super::hostname::{AppHost, HostError};
use super::pattern::Pattern;
use super::token::Keys;

/// The wildcard of app hosts.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Wildcard {
    /// `*.localhost` where the server is reached by this machine's own address, else none.
    #[default]
    Default,
    /// No app has a host of its own.
    None,
    /// This one.
    Pattern(Pattern),
}

impl Wildcard {
    /// The pattern that is used when the server is reached at `access`.
    pub fn pattern(&self, access: &Url) -> Option<Pattern> {
        match self {
            Self::None => None,
            Self::Pattern(pattern) => Some(pattern.clone()),
            Self::Default => {
                let local = match access.host() {
                    Some(url::Host::Ipv4(address)) => address.is_loopback(),
                    Some(url::Host::Ipv6(address)) => address.is_loopback(),
                    Some(url::Host::Domain(name)) => name == "localhost",
                    None => false,
                };
                let text = match access.port() {
                    Some(port) => format!("*.localhost:{port}"),
                    None => "*.localhost".to_owned(),
                };
                local.then(|| text.parse().ok()).flatten()
            }
        }
    }
}

/// The `SameSite` attribute of the server's cookies.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum SameSite {
    /// Sent along when a link leads here.
    #[default]
    Lax,
    /// Sent along from other sites' pages; browsers want `Secure` with it.
    None,
}

/// A text that is no `SameSite` choice.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("'{0}' is no SameSite setting; there are lax and none")]
pub struct SameSiteError(String);

impl FromStr for SameSite {
    type Err = SameSiteError;

    fn from_str(text: &str) -> Result<Self, SameSiteError> {
        match text.to_ascii_lowercase().as_str() {
            "lax" => Ok(Self::Lax),
            "none" => Ok(Self::None),
            _ => Err(SameSiteError(text.to_owned())),
        }
    }
}

impl fmt::Display for SameSite {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Lax => "Lax",
            Self::None => "None",
        })
    }
}

/// What an administrator chooses.
#[derive(Clone, Debug, Default)]
pub struct Choices {
    /// The wildcard of app hosts.
    pub wildcard: Wildcard,
    /// No apps below the dashboard's own host.
    pub disable_path_apps: bool,
    /// What is allowed to apps below the dashboard's own host.
    pub path_policy: PathPolicy,
    /// Cookies are sent over HTTPS only.
    pub secure_cookie: bool,
    /// `SameSite` of cookies.
    pub same_site: SameSite,
    /// The proxies in front.
    pub trust: Trust,
    /// Requests that a visitor may make to an app in a minute; 0 is no limit.
    pub rate_limit: u32,
}

/// The settings of a running server.
#[derive(Debug)]
pub struct Settings {
    /// The wildcard of app hosts, if there is one.
    pub pattern: Option<Pattern>,
    /// Name of the cookie that opens all apps under the wildcard.
    pub session_cookie: String,
    /// Whether apps are served below the dashboard's own host.
    pub path_apps: bool,
    /// What is allowed to those.
    pub path_policy: PathPolicy,
    /// Cookies are sent over HTTPS only.
    pub secure_cookie: bool,
    /// `SameSite` of cookies.
    pub same_site: SameSite,
    /// The proxies in front.
    pub trust: Trust,
    /// Signs app tokens.
    pub keys: Keys,
    /// Requests that a visitor may make to an app in a minute; 0 is no limit.
    pub rate_limit: u32,
}

impl Settings {
    /// The settings of a server that is reached at `access`, with its signing secret.
    pub fn new(choices: &Choices, access: &Url, secret: &[u8]) -> Self {
        let pattern = choices.wildcard.pattern(access);
        let text = pattern.as_ref().map(Pattern::to_string).unwrap_or_default();
        Self {
            pattern,
            session_cookie: cookies::subdomain_session(&text),
            path_apps: !choices.disable_path_apps,
            path_policy: choices.path_policy,
            secure_cookie: choices.secure_cookie,
            same_site: choices.same_site,
            trust: choices.trust.clone(),
            keys: Keys::new(secret),
            rate_limit: choices.rate_limit,
        }
    }

    /// The attributes that every cookie of the server has: HttpOnly, SameSite and, where it is
    /// wanted, Secure.
    pub fn cookie_attributes(&self) -> String {
        let secure = if self.secure_cookie { "; Secure" } else { "" };
        format!("HttpOnly; SameSite={}{secure}", self.same_site)
    }

    /// The `Domain` of the cookie for all apps under the wildcard. A domain of one label is none:
    /// browsers refuse it, and each app gets a cookie of its own.
    pub fn session_domain(&self) -> Option<&str> {
        let domain = self.pattern.as_ref()?.cookie_domain();
        let several = domain.trim_start_matches('.').contains('.');
        several.then_some(domain)
    }

    /// The address of an app or port with a host of its own; `None` without a wildcard.
    ///
    /// # Errors
    /// When DNS cannot hold the label.
    pub fn app_url(&self, app: &AppHost, access: &Url) -> Option<Result<String, HostError>> {
        let pattern = self.pattern.as_ref()?;
        let label = app.label(pattern.label_suffix());
        Some(label.map(|_| pattern.url_of(app, access)))
    }

    /// The address of an app below the dashboard's own host; `None` when these are off.
    pub fn path_app_url(&self, user: &str, workspace: &str, slug: &str) -> Option<String> {
        self.path_apps
            .then(|| format!("/@{user}/{workspace}/apps/{slug}/"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings(access: &str) -> Settings {
        let access = Url::parse(access).unwrap();
        Settings::new(&Choices::default(), &access, &[1; 32])
    }

    #[test]
    fn a_server_of_this_machine_has_a_wildcard_without_being_told() {
        for access in ["http://127.0.0.1:3000", "http://localhost:3000"] {
            let pattern = settings(access).pattern.unwrap();
            assert_eq!(pattern.to_string(), "*.localhost:3000");
        }
        assert!(settings("https://relay.example.com").pattern.is_none());
    }

    #[test]
    fn a_cookie_for_one_label_has_no_domain() {
        assert_eq!(settings("http://127.0.0.1:3000").session_domain(), None);
        let choices = Choices {
            wildcard: Wildcard::Pattern("*.apps.example.com".parse().unwrap()),
            ..Choices::default()
        };
        let access = Url::parse("https://relay.example.com").unwrap();
        let settings = Settings::new(&choices, &access, &[1; 32]);
        assert_eq!(settings.session_domain(), Some(".apps.example.com"));
    }

    #[test]
    fn an_address_that_dns_cannot_hold_is_an_error() {
        let settings = settings("http://127.0.0.1:3000");
        let access = Url::parse("http://127.0.0.1:3000").unwrap();
        let mut app = AppHost {
            slug_or_port: "8080".into(),
            agent: "main".into(),
            workspace: "dev".into(),
            user: "alice".into(),
            ..AppHost::default()
        };
        let url = settings.app_url(&app, &access).unwrap().unwrap();
        assert_eq!(url, "http://8080--main--dev--alice.localhost:3000/");
        app.workspace = "w".repeat(60);
        assert!(settings.app_url(&app, &access).unwrap().is_err());
    }
}
