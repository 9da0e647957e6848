//! Where a redirect may lead: never off this origin by a request's path, and never to a host that
//! serves no app (coder_facts §2.6, §2.9 step 3).

use std::fmt::Write;

use url::Url;

use super::pattern::Pattern;

/// A path for `Location` made from a decoded request path: it starts with one slash and holds
/// nothing that a browser could read as another origin.
pub fn safe_path(decoded: &str) -> String {
    let rest = decoded.trim_start_matches(['/', '\\']);
    let mut path = String::with_capacity(rest.len() + 1);
    path.push('/');
    for byte in rest.bytes() {
        if byte.is_ascii_alphanumeric() || b"-_.~$&+,/:;=@!'()*".contains(&byte) {
            path.push(char::from(byte));
        } else {
            // Writing to a string does not fail.
            let _ = write!(path, "%{byte:02X}");
        }
    }
    path
}

/// An address under which apps are served.
#[derive(Clone, Debug)]
pub struct Place {
    /// Its own URL: the scheme is that of all its apps.
    pub url: Url,
    /// Its wildcard, when it has one.
    pub wildcard: Option<Pattern>,
    /// Whether its own host serves apps by path (a proxy's does, the dashboard's does not count).
    pub serves_paths: bool,
}

/// Why a visitor is not sent there.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RedirectError {
    /// The parameter is missing.
    #[error("redirect_uri is missing; start from the app's own address")]
    Missing,
    /// It is no URL.
    #[error("redirect_uri '{0}' is no URL")]
    NoUrl(String),
    /// It leads elsewhere.
    #[error("redirect_uri leads to '{0}', which serves no application of this deployment")]
    ForeignHost(String),
}

/// The target of a login redirect, with the scheme of the place that serves it.
///
/// # Errors
/// When it is missing, no URL, or not an app's address.
pub fn target(redirect_uri: Option<&str>, places: &[Place]) -> Result<Url, RedirectError> {
    let text = redirect_uri
        .filter(|text| !text.is_empty())
        .ok_or(RedirectError::Missing)?;
    let mut url = Url::parse(text).map_err(|_| RedirectError::NoUrl(text.to_owned()))?;
    let host = url.host_str().unwrap_or_default().to_owned();
    let serves = |place: &&Place| {
        let own = place.serves_paths && place.url.host_str() == Some(host.as_str());
        own || place
            .wildcard
            .as_ref()
            .is_some_and(|pattern| pattern.capture(&host).is_some())
    };
    let is_dashboard = places
        .iter()
        .any(|place| !place.serves_paths && place.url.host_str() == Some(host.as_str()));
    match places.iter().find(serves) {
        Some(place) if !is_dashboard => {
            let changed = url.set_scheme(place.url.scheme());
            changed.map_err(|()| RedirectError::NoUrl(text.to_owned()))?;
            Ok(url)
        }
        _ => Err(RedirectError::ForeignHost(host)),
    }
}
