//! Cookies: which of a request's go on to the app, and the names of this server's own
//! (coder_facts §2.8, §2.12).

use sha2::{Digest, Sha256};

/// The dashboard's session.
pub const SESSION: &str = "coder_session_token";
/// The session of apps served by path.
pub const PATH_APP_SESSION: &str = "coder_path_app_session_token";
/// The right to one app for a minute.
pub const SIGNED_APP_TOKEN: &str = "coder_signed_app_token";
const SUBDOMAIN_APP_SESSION: &str = "coder_subdomain_app_session_token";
const OWN: [&str; 6] = [
    SESSION,
    "oauth_state",
    "oauth_redirect",
    "oauth_pkce_verifier",
    PATH_APP_SESSION,
    SIGNED_APP_TOKEN,
];

/// The name of the session cookie that serves every app under a wildcard. It differs by wildcard,
/// so that one deployment's cookie cannot shadow that of another under a common domain.
pub fn subdomain_session(wildcard: &str) -> String {
    let hash = Sha256::digest(wildcard.as_bytes());
    format!("{SUBDOMAIN_APP_SESSION}_{}", hex::encode(&hash[..16]))
}

/// A `Cookie` header without this server's own credentials; the others keep their order.
pub fn without_own(header: &str) -> String {
    let kept: Vec<&str> = header
        .split(';')
        .map(str::trim)
        .filter(|cookie| !cookie.is_empty() && !is_own(name_of(cookie)))
        .collect();
    kept.join("; ")
}

/// The values of all cookies called `name`, in order.
pub fn values<'a>(header: &'a str, name: &'a str) -> impl Iterator<Item = &'a str> {
    header.split(';').filter_map(move |cookie| {
        let (found, value) = cookie.trim().split_once('=')?;
        (found == name).then_some(value)
    })
}

fn name_of(cookie: &str) -> &str {
    cookie.split_once('=').map_or(cookie, |(name, _)| name)
}

fn is_own(name: &str) -> bool {
    let name = name.strip_prefix("__Host-").unwrap_or(name);
    OWN.contains(&name) || name.starts_with(SUBDOMAIN_APP_SESSION)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_host_prefixed_session_does_not_reach_the_app_either() {
        assert_eq!(without_own("__Host-coder_session_token=x; a=1"), "a=1");
    }

    #[test]
    fn all_cookies_of_a_name_are_found() {
        let header = "a=1; b=2; a=3";
        assert_eq!(values(header, "a").collect::<Vec<_>>(), ["1", "3"]);
    }
}
