//! `relay server`: the control plane, and the commands that manage its accounts and workspaces.

mod admin;
mod apps;

use std::net::{SocketAddr, ToSocketAddrs};
use std::path::{Path, PathBuf};

use anyhow::{Context, ensure};
use clap::builder::BoolishValueParser;
use relay_engine::limits;
use relay_server::{Config, Server, StunAddress, TlsFiles};
use relay_tunnel::endpoint::{MAX_LOOPS, StackChoice};
use relay_tunnel::stack::NetHelper;
use url::Url;

use super::interrupted;
use super::tunnel::BusyPollArgs;
use crate::cli::Global;
use crate::output;

const EXAMPLES: &str = "\
Examples:
  relay server                                                 serve this machine only
  relay server --http-address 0.0.0.0:3000 --access-url http://relay.example.com:3000
  relay server user create alice --email alice@example.com --password-stdin --admin
  relay server workspace create alice/dev --agent main
  relay server template add main.tf --name web
  relay server token create alice";

/// Flags of `relay server`.
#[derive(clap::Args)]
#[command(after_help = EXAMPLES, args_conflicts_with_subcommands = false)]
pub(crate) struct Args {
    #[command(subcommand)]
    command: Option<admin::Command>,
    /// Directory of the database [default: ~/.local/share/relay]
    #[arg(long, global = true, env = "RELAY_DATA_DIR", value_name = "DIR")]
    #[arg(hide_env_values = true)]
    data_dir: Option<PathBuf>,
    /// Address to answer HTTP requests on
    #[arg(long, env = "CODER_HTTP_ADDRESS", default_value = "127.0.0.1:3000")]
    #[arg(value_name = "IP:PORT", hide_env_values = true)]
    http_address: String,
    /// URL by which clients and agents reach the server [default: from the address]
    #[arg(long, env = "CODER_ACCESS_URL", value_name = "URL")]
    #[arg(hide_env_values = true)]
    access_url: Option<String>,
    /// UDP address to answer STUN requests on, and on the port behind it, or `none` [default: ports
    /// 3478 and 3479 of the HTTP address]
    #[arg(long, env = "RELAY_STUN_ADDRESS", value_name = "IP:PORT")]
    #[arg(hide_env_values = true)]
    stun_address: Option<String>,
    /// PEM file with the certificate chain, to speak TLS
    #[arg(long, env = "CODER_TLS_CERT_FILE", value_name = "FILE")]
    #[arg(hide_env_values = true)]
    tls_cert_file: Option<PathBuf>,
    /// PEM file with the key of the certificate
    #[arg(long, env = "CODER_TLS_KEY_FILE", value_name = "FILE")]
    #[arg(hide_env_values = true)]
    tls_key_file: Option<PathBuf>,
    /// Have clients and agents use relays only
    #[arg(long, env = "CODER_BLOCK_DIRECT", hide_env_values = true)]
    #[arg(num_args = 0..=1, require_equals = true, default_value = "false")]
    #[arg(default_missing_value = "true", hide_default_value = true)]
    #[arg(hide_possible_values = true, value_name = "BOOL")]
    #[arg(value_parser = BoolishValueParser::new())]
    block_direct_connections: bool,
    /// Have clients and agents reach relays by WebSocket
    #[arg(long, env = "CODER_DERP_FORCE_WEBSOCKETS", hide_env_values = true)]
    #[arg(num_args = 0..=1, require_equals = true, default_value = "false")]
    #[arg(default_missing_value = "true", hide_default_value = true)]
    #[arg(hide_possible_values = true, value_name = "BOOL")]
    #[arg(value_parser = BoolishValueParser::new())]
    derp_force_websockets: bool,
    /// Requests a minute that a user may make to a path of the API; 0 is no limit
    #[arg(long, env = "CODER_API_RATE_LIMIT", value_name = "NUMBER")]
    #[arg(
        default_value_t = 512,
        allow_negative_numbers = true,
        hide_env_values = true
    )]
    api_rate_limit: i64,
    /// Serve figures for Prometheus, at /metrics of the address below; docs/metrics.md lists them
    #[arg(long, env = "CODER_PROMETHEUS_ENABLE", hide_env_values = true)]
    #[arg(num_args = 0..=1, require_equals = true, default_value = "false")]
    #[arg(default_missing_value = "true", hide_default_value = true)]
    #[arg(hide_possible_values = true, value_name = "BOOL")]
    #[arg(value_parser = BoolishValueParser::new())]
    prometheus_enable: bool,
    /// Address to serve figures for Prometheus on; whoever reaches it may read them
    #[arg(
        long,
        env = "CODER_PROMETHEUS_ADDRESS",
        default_value = "127.0.0.1:2112"
    )]
    #[arg(value_name = "IP:PORT", hide_env_values = true)]
    prometheus_address: String,
    #[command(flatten)]
    busy_poll: BusyPollArgs,
    /// TCP/IP stack inside the server's own tunnels: auto, kernel or user
    #[arg(
        long,
        env = "RELAY_STACK",
        default_value = "auto",
        value_name = "STACK"
    )]
    #[arg(hide_env_values = true)]
    stack: StackChoice,
    #[command(flatten)]
    apps: apps::Args,
    /// Loops of the server's end of tunnels, which share the agents among them, a thread each
    #[arg(
        long,
        env = "RELAY_LOOPS",
        hide_env_values = true,
        value_name = "NUMBER"
    )]
    #[arg(default_value_t = 1)]
    #[arg(value_parser = clap::value_parser!(u8).range(1..=i64::from(MAX_LOOPS)))]
    loops: u8,
}

/// Runs the command.
pub(crate) fn run(args: Args, _global: &Global) -> anyhow::Result<()> {
    let data_dir = match &args.data_dir {
        Some(dir) => dir.clone(),
        None => default_data_dir()?,
    };
    let serving = args.command.is_none();
    // Before the first thread: the helper must be alone when it is forked.
    let helper = if serving { net_helper() } else { None };
    let runtime = match serving {
        true => tokio::runtime::Builder::new_multi_thread(),
        false => tokio::runtime::Builder::new_current_thread(),
    }
    .enable_all()
    .build()?;
    if let Some(command) = args.command {
        return runtime.block_on(admin::run(command, &data_dir));
    }
    let config = Config {
        helper,
        ..args.config(data_dir)?
    };
    limits::raise_descriptor_limit();
    runtime.block_on(serve(config))
}

/// Makes the server's way into workspaces; everything else works without it.
fn net_helper() -> Option<NetHelper> {
    let helper = NetHelper::spawn();
    helper
        .map_err(|error| tracing::warn!("apps of workspaces cannot be opened: {error}"))
        .ok()
}

async fn serve(config: Config) -> anyhow::Result<()> {
    let data_dir = config.data_dir.clone();
    let mut interrupted = std::pin::pin!(interrupted()?);
    let server = tokio::select! {
        server = Server::start(config) => server?,
        () = &mut interrupted => return Ok(()),
    };
    let url = server
        .access_url()
        .as_str()
        .trim_end_matches('/')
        .to_owned();
    tracing::info!("listening on {}, reached at {url}", server.local_addr());
    if !server.store().has_users().await? {
        output::notice(first_steps(&url, &data_dir));
    }
    interrupted.await;
    tracing::info!("shutting down");
    server.shutdown().await;
    Ok(())
}

/// What to type next, with nobody there yet.
fn first_steps(url: &str, data_dir: &Path) -> String {
    let data = match default_data_dir() {
        Ok(default) if default == data_dir => String::new(),
        _ => format!(" --data-dir {}", quoted(&data_dir.to_string_lossy())),
    };
    let password = uuid::Uuid::new_v4().simple().to_string();
    let password = &password[..12];
    let token = r#"sed -n 's/.*"token": "\(.*\)".*/\1/p'"#;
    format!(
        "There is nobody here yet. Create a user, run the agent, forward a port, each in a terminal:
  relay server user create alice --email alice@example.com --password {password} --admin{data}
  relay agent --url {url} --token \"$(relay server workspace create alice/dev -o json{data} | {token})\"
  CODER_SESSION_TOKEN=\"$(relay server token create alice{data})\" relay port-forward dev --tcp 8080:8000 --url {url}"
    )
}

fn quoted(text: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "/._-+".contains(c);
    match text.chars().all(plain) {
        true => text.to_owned(),
        false => format!("'{}'", text.replace('\'', r"'\''")),
    }
}

fn default_data_dir() -> anyhow::Result<PathBuf> {
    let variable = |name| std::env::var_os(name).filter(|value| !value.is_empty());
    if let Some(data) = variable("XDG_DATA_HOME") {
        return Ok(PathBuf::from(data).join("relay"));
    }
    let home = variable("HOME").context("HOME is not set: name a directory with --data-dir")?;
    Ok(PathBuf::from(home).join(".local/share/relay"))
}

impl Args {
    fn config(&self, data_dir: PathBuf) -> anyhow::Result<Config> {
        let http_address = address("--http-address", &self.http_address)?;
        let access_url = match self.access_url.as_deref().filter(|text| !text.is_empty()) {
            None => None,
            Some(text) => {
                let url = Url::parse(text)
                    .with_context(|| format!("--access-url \"{text}\" is not a URL"))?;
                ensure!(
                    matches!(url.scheme(), "http" | "https") && url.has_host(),
                    "--access-url \"{text}\" must start with http:// or https:// and name a host"
                );
                Some(url)
            }
        };
        let stun = match self.stun_address.as_deref().filter(|text| !text.is_empty()) {
            None => StunAddress::Default,
            Some("none") => StunAddress::Off,
            Some(text) => StunAddress::At(address("--stun-address", text)?),
        };
        let tls = match (&self.tls_cert_file, &self.tls_key_file) {
            (Some(certificate), Some(key)) => Some(TlsFiles {
                certificate: certificate.clone(),
                key: key.clone(),
            }),
            (None, None) => None,
            (Some(_), None) => anyhow::bail!("--tls-cert-file needs --tls-key-file as well"),
            (None, Some(_)) => anyhow::bail!("--tls-key-file needs --tls-cert-file as well"),
        };
        Ok(Config {
            access_url,
            stun,
            tls,
            block_direct: self.block_direct_connections,
            force_websockets: self.derp_force_websockets,
            // Coder's settings have -1 for no limit.
            api_rate_limit: u32::try_from(self.api_rate_limit.max(0)).unwrap_or(u32::MAX),
            busy_poll: self.busy_poll.duration(),
            stack: self.stack,
            apps: self.apps.choices()?,
            loops: self.loops,
            prometheus: match self.prometheus_enable {
                true => Some(address("--prometheus-address", &self.prometheus_address)?),
                false => None,
            },
            ..Config::new(http_address, data_dir)
        })
    }
}

fn address(flag: &str, text: &str) -> anyhow::Result<SocketAddr> {
    if let Ok(address) = text.parse() {
        return Ok(address);
    }
    let found = text.to_socket_addrs().ok().and_then(|mut all| all.next());
    found.with_context(|| {
        format!("{flag} \"{text}\" is not an address with a port, such as 127.0.0.1:3000")
    })
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use clap::Parser;
    use relay_server::apps::settings::Wildcard;
    use relay_tunnel::endpoint::{BUSY_POLL, StackChoice};

    use super::*;

    #[derive(Parser)]
    struct Cli {
        #[command(flatten)]
        args: Args,
    }

    fn config(words: &[&str]) -> anyhow::Result<Config> {
        let words = std::iter::once(&"server").chain(words);
        Cli::try_parse_from(words)?
            .args
            .config(PathBuf::from("/data"))
    }

    #[test]
    fn flags_become_settings() {
        let plain = config(&[]).unwrap();
        assert_eq!(plain.http_address.to_string(), "127.0.0.1:3000");
        assert_eq!(plain.stun, StunAddress::Default);
        assert!(!plain.block_direct && plain.access_url.is_none());
        assert_eq!(plain.api_rate_limit, 512);
        assert_eq!(plain.prometheus, None);
        let served = config(&["--prometheus-enable"]).unwrap().prometheus;
        assert_eq!(served, Some("127.0.0.1:2112".parse().unwrap()));
        assert_eq!(plain.busy_poll, Duration::from_micros(BUSY_POLL));
        assert_eq!(plain.stack, StackChoice::Auto);
        let words = ["--stun-address", "none", "--block-direct-connections"];
        let words = [
            &words[..],
            &["--api-rate-limit", "-1", "--busy-poll", "0", "--loops", "3"],
            &["--stack", "user"],
        ]
        .concat();
        let other = config(&words).unwrap();
        assert_eq!((other.api_rate_limit, other.loops), (0, 3));
        assert_eq!(other.stun, StunAddress::Off);
        assert!(other.block_direct && other.busy_poll.is_zero());
        assert_eq!(other.stack, StackChoice::User);
    }

    #[test]
    fn bad_values_are_named() {
        for (flag, value) in [
            ("--http-address", "nonsense"),
            ("--http-address", "127.0.0.1:70000"),
            ("--stun-address", "1.2.3.4"),
            ("--access-url", "ftp://x"),
            ("--access-url", "relay.example.com"),
        ] {
            let error = format!("{:#}", config(&[flag, value]).unwrap_err());
            assert!(error.contains(flag) && error.contains(value), "{error}");
        }
        assert!(config(&["--tls-cert-file", "a.pem"]).is_err());
    }

    #[test]
    fn flags_about_apps_become_choices() {
        let plain = config(&[]).unwrap().apps;
        assert_eq!(plain.wildcard, Wildcard::Default);
        let words = [
            "--wildcard-access-url",
            "*.apps.example.com",
            "--disable-path-apps",
            "--proxy-trusted-origins",
            "10.0.0.0/8,fd00::/8",
            "--proxy-trusted-headers=X-Forwarded-For",
        ];
        let apps = config(&words).unwrap().apps;
        let pattern = "*.apps.example.com".parse().unwrap();
        assert_eq!(apps.wildcard, Wildcard::Pattern(pattern));
        assert!(apps.disable_path_apps && !apps.secure_cookie);
        assert_eq!(apps.trust.origins.len(), 2);
        for (flag, value) in [
            ("--wildcard-access-url", "https://*.example.com"),
            ("--samesite-auth-cookie", "none"),
            ("--proxy-trusted-origins", "10.0.0.0/99"),
            ("--proxy-trusted-headers", "a b"),
        ] {
            let error = format!("{:#}", config(&[flag, value]).unwrap_err());
            assert!(error.contains(flag), "{error}");
        }
    }

    #[test]
    fn the_first_steps_are_three_lines_to_paste() {
        let text = first_steps("http://127.0.0.1:3000", Path::new("/some where"));
        let lines: Vec<_> = text.lines().skip(1).map(str::trim).collect();
        assert_eq!(lines.len(), 3, "{text}");
        assert!(lines.iter().all(|line| line.contains("relay ")), "{text}");
        assert!(lines[0].contains("--data-dir '/some where'"), "{text}");
    }
}
