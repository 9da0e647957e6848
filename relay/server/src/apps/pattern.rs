//! The wildcard of app host names, such as `*.apps.example.com` or `*--apps.example.com`
//! (coder_facts §2.1, §2.2).

use std::fmt;
use std::str::FromStr;

use url::Url;

use super::hostname::AppHost;

/// A valid wildcard; its text is lower case.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pattern {
    /// What follows the asterisk, without the port.
    rest: String,
    port: Option<u16>,
}

/// Why a text is no wildcard.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PatternError {
    /// With `http:` or `https:`.
    #[error("a wildcard has no scheme; write *.apps.example.com without https://")]
    HasScheme,
    /// A dot at an end.
    #[error("a wildcard neither starts nor ends with a dot")]
    EdgePeriod,
    /// One label.
    #[error("a wildcard has at least two labels, such as *.example.com")]
    TooFewLabels,
    /// None, or several.
    #[error("a wildcard has exactly one asterisk")]
    NotOneAsterisk,
    /// The asterisk elsewhere.
    #[error("the asterisk of a wildcard is its first character")]
    AsteriskNotFirst,
    /// A label that DNS would not take.
    #[error("each label of a wildcard has letters, digits and inner hyphens only")]
    InvalidLabel,
}

impl FromStr for Pattern {
    type Err = PatternError;

    fn from_str(text: &str) -> Result<Self, PatternError> {
        let text = text.to_lowercase();
        if text.contains("http:") || text.contains("https:") {
            return Err(PatternError::HasScheme);
        }
        if text.starts_with('.') || text.ends_with('.') {
            return Err(PatternError::EdgePeriod);
        }
        if !text.contains('.') {
            return Err(PatternError::TooFewLabels);
        }
        if text.matches('*').count() != 1 {
            return Err(PatternError::NotOneAsterisk);
        }
        let Some(rest) = text.strip_prefix('*') else {
            return Err(PatternError::AsteriskNotFirst);
        };
        let (rest, port) = match rest.rsplit_once(':') {
            Some((rest, port)) => (
                rest,
                Some(port.parse().map_err(|_| PatternError::InvalidLabel)?),
            ),
            None => (rest, None),
        };
        if !format!("a{rest}").split('.').all(is_label) {
            return Err(PatternError::InvalidLabel);
        }
        Ok(Self {
            rest: rest.to_owned(),
            port,
        })
    }
}

impl fmt::Display for Pattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "*{}", self.rest)?;
        match self.port {
            Some(port) => write!(f, ":{port}"),
            None => Ok(()),
        }
    }
}

impl Pattern {
    /// What the asterisk stands for in `host`, in lower case as far as the host is compared; `None`
    /// when it does not match. A port and one trailing dot of the host are ignored.
    pub fn capture<'a>(&self, host: &'a str) -> Option<&'a str> {
        let host = without_port(host.trim());
        let host = host.strip_suffix('.').unwrap_or(host);
        let at = host.len().checked_sub(self.rest.len())?;
        let (captured, rest) = (host.get(..at)?, host.get(at..)?);
        let matches = rest.eq_ignore_ascii_case(&self.rest)
            && !captured.is_empty()
            && !captured.contains('.');
        matches.then_some(captured)
    }

    /// What browsers are told: the pattern with the access URL's port, if it has none of its own.
    pub fn advertised(&self, access: &Url) -> String {
        match (self.port, access.port()) {
            (None, Some(port)) => format!("*{}:{port}", self.rest),
            _ => self.to_string(),
        }
    }

    /// The `Domain` of cookies that serve every app: a dot and what follows the first dot.
    pub fn cookie_domain(&self) -> &str {
        self.rest.find('.').map_or("", |at| &self.rest[at..])
    }

    /// Characters that the pattern adds to an app's label.
    pub fn label_suffix(&self) -> usize {
        self.rest.find('.').unwrap_or(self.rest.len())
    }

    /// The URL of an app under this pattern, with scheme and port of the access URL.
    pub fn url_of(&self, app: &AppHost, access: &Url) -> String {
        let advertised = self.advertised(access);
        let host = advertised.replacen('*', &app.to_string(), 1);
        format!("{}://{host}/", access.scheme())
    }
}

/// Who answers a request, by its host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Handler {
    /// The dashboard and the API.
    Dashboard,
    /// The proxy; the host names this app.
    App(AppHost),
    /// The proxy's error page: an app host that names no app.
    NoApp(super::hostname::HostError),
    /// The old log-out address: back to the dashboard.
    Logout,
}

/// Decides by the host of a request (coder_facts §2.5 steps 1-5).
pub fn route(host: &str, access: &Url, pattern: Option<&Pattern>) -> Handler {
    let Some(pattern) = pattern else {
        return Handler::Dashboard;
    };
    let bare = without_port(host.trim()).trim_matches('.');
    let own = access
        .host_str()
        .is_some_and(|own| own.eq_ignore_ascii_case(bare));
    if own || !bare.contains('.') {
        return Handler::Dashboard;
    }
    match pattern.capture(host) {
        None => Handler::Dashboard,
        Some("coder-logout") => Handler::Logout,
        Some(label) => label.parse().map_or_else(Handler::NoApp, Handler::App),
    }
}

/// The host for `frame-src` and `connect-src` of the dashboard's policy: everything under the
/// wildcard's domain, or `host` itself where the wildcard does not start with an asterisk label.
pub fn policy_host(host: &str, wildcard: &str) -> String {
    if wildcard.is_empty() {
        return host.to_owned();
    }
    match wildcard.split_once('.') {
        _ if !wildcard.contains('*') => wildcard.to_owned(),
        Some((first, rest)) if first.contains('*') => format!("*.{rest}"),
        _ => host.to_owned(),
    }
}

fn without_port(host: &str) -> &str {
    match host.rsplit_once(':') {
        Some((name, port)) if port.bytes().all(|byte| byte.is_ascii_digit()) => name,
        _ => host,
    }
}

fn is_label(label: &str) -> bool {
    let inner = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-';
    let edge = |byte: Option<u8>| byte.is_some_and(|byte| byte.is_ascii_alphanumeric());
    edge(label.bytes().next()) && edge(label.bytes().last()) && label.bytes().all(inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_url_of_an_app_has_the_access_urls_scheme_and_port() {
        let pattern: Pattern = "*.localhost".parse().unwrap();
        let access = Url::parse("http://127.0.0.1:3000").unwrap();
        let app = "8080--main--dev--alice".parse().unwrap();
        let url = pattern.url_of(&app, &access);
        assert_eq!(url, "http://8080--main--dev--alice.localhost:3000/");
    }

    #[test]
    fn a_suffix_pattern_takes_room_of_the_label() {
        let pattern: Pattern = "*--apps.example.com".parse().unwrap();
        assert_eq!(pattern.label_suffix(), 6);
        assert_eq!(pattern.cookie_domain(), ".example.com");
    }

    #[test]
    fn the_old_log_out_address_is_known() {
        let pattern: Pattern = "*.example.com".parse().unwrap();
        let access = Url::parse("https://relay.example.com").unwrap();
        let handler = route("coder-logout.example.com", &access, Some(&pattern));
        assert_eq!(handler, Handler::Logout);
    }
}
