//! Flags of `relay server` that are about apps in a browser; the names are Coder's.

use anyhow::Context;
use clap::builder::BoolishValueParser;
use relay_server::apps::access::PathPolicy;
use relay_server::apps::forwarded::Trust;
use relay_server::apps::settings::{Choices, SameSite, Wildcard};

/// The flags.
#[derive(clap::Args)]
#[group(skip)]
pub(super) struct Args {
    /// Pattern of the hosts of apps and ports, such as *.apps.example.com, or `none` [default:
    /// *.localhost where the server is reached by an address of this machine]
    #[arg(long, env = "CODER_WILDCARD_ACCESS_URL", value_name = "PATTERN")]
    #[arg(hide_env_values = true)]
    wildcard_access_url: Option<String>,
    /// Open no apps below the server's own address
    #[arg(long, env = "CODER_DISABLE_PATH_APPS", hide_env_values = true)]
    #[arg(num_args = 0..=1, require_equals = true, default_value = "false")]
    #[arg(default_missing_value = "true", hide_default_value = true)]
    #[arg(hide_possible_values = true, value_name = "BOOL")]
    #[arg(value_parser = BoolishValueParser::new())]
    disable_path_apps: bool,
    /// Let sharing count for apps below the server's own address, whose pages could then act as
    /// whoever opens them
    #[arg(
        long,
        env = "CODER_DANGEROUS_ALLOW_PATH_APP_SHARING",
        hide_env_values = true
    )]
    #[arg(num_args = 0..=1, require_equals = true, default_value = "false")]
    #[arg(default_missing_value = "true", hide_default_value = true)]
    #[arg(hide_possible_values = true, value_name = "BOOL")]
    #[arg(value_parser = BoolishValueParser::new())]
    dangerous_allow_path_app_sharing: bool,
    /// Let administrators open other people's apps below the server's own address
    #[arg(long, env = "CODER_DANGEROUS_ALLOW_PATH_APP_SITE_OWNER_ACCESS")]
    #[arg(num_args = 0..=1, require_equals = true, default_value = "false")]
    #[arg(default_missing_value = "true", hide_default_value = true)]
    #[arg(
        hide_possible_values = true,
        value_name = "BOOL",
        hide_env_values = true
    )]
    #[arg(value_parser = BoolishValueParser::new())]
    dangerous_allow_path_app_site_owner_access: bool,
    /// Have browsers send cookies over HTTPS only
    #[arg(long, env = "CODER_SECURE_AUTH_COOKIE", hide_env_values = true)]
    #[arg(num_args = 0..=1, require_equals = true, default_value = "false")]
    #[arg(default_missing_value = "true", hide_default_value = true)]
    #[arg(hide_possible_values = true, value_name = "BOOL")]
    #[arg(value_parser = BoolishValueParser::new())]
    secure_auth_cookie: bool,
    /// Whether other sites' pages send cookies along: lax or none
    #[arg(long, env = "CODER_SAMESITE_AUTH_COOKIE", default_value = "lax")]
    #[arg(value_name = "MODE", hide_env_values = true)]
    samesite_auth_cookie: String,
    /// Addresses of proxies that are believed, such as 10.0.0.0/8; with commas or repeated
    #[arg(long, env = "CODER_PROXY_TRUSTED_ORIGINS", value_name = "NETWORK")]
    #[arg(value_delimiter = ',', hide_env_values = true)]
    proxy_trusted_origins: Vec<String>,
    /// Headers by which those proxies tell the client's address, such as X-Forwarded-For
    #[arg(long, env = "CODER_PROXY_TRUSTED_HEADERS", value_name = "NAME")]
    #[arg(value_delimiter = ',', hide_env_values = true)]
    proxy_trusted_headers: Vec<String>,
    /// Requests a minute that a visitor may make to apps of an agent; 0 is no limit
    #[arg(long, env = "RELAY_APP_RATE_LIMIT", value_name = "NUMBER")]
    #[arg(default_value_t = 0, hide_env_values = true)]
    app_rate_limit: u32,
}

impl Args {
    pub(super) fn choices(&self) -> anyhow::Result<Choices> {
        let wildcard = match self.wildcard_access_url.as_deref().map(str::trim) {
            None | Some("") => Wildcard::Default,
            Some("none") => Wildcard::None,
            Some(text) => Wildcard::Pattern(
                text.parse()
                    .with_context(|| format!("--wildcard-access-url \"{text}\""))?,
            ),
        };
        let same_site: SameSite = self
            .samesite_auth_cookie
            .parse()
            .context("--samesite-auth-cookie")?;
        anyhow::ensure!(
            same_site != SameSite::None || self.secure_auth_cookie,
            "--samesite-auth-cookie none needs --secure-auth-cookie: browsers refuse the cookie \
             without it"
        );
        let given = |list: &[String]| -> Vec<String> {
            let trimmed = list.iter().map(|text| text.trim().to_owned());
            trimmed.filter(|text| !text.is_empty()).collect()
        };
        let origins = given(&self.proxy_trusted_origins)
            .iter()
            .map(|text| text.parse().context("--proxy-trusted-origins"))
            .collect::<anyhow::Result<_>>()?;
        let headers = given(&self.proxy_trusted_headers)
            .iter()
            .map(|name| {
                let parsed = name.parse();
                parsed.with_context(|| {
                    format!("--proxy-trusted-headers \"{name}\" is no name of a header")
                })
            })
            .collect::<anyhow::Result<_>>()?;
        Ok(Choices {
            wildcard,
            disable_path_apps: self.disable_path_apps,
            path_policy: PathPolicy {
                allow_sharing: self.dangerous_allow_path_app_sharing,
                allow_site_admin: self.dangerous_allow_path_app_site_owner_access,
            },
            secure_cookie: self.secure_auth_cookie,
            same_site,
            trust: Trust { origins, headers },
            rate_limit: self.app_rate_limit,
        })
    }
}
