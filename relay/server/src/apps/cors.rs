//! Cross-origin requests between apps (coder_facts §2.11): apps of one user may call each other,
//! nobody else's.

use std::str::FromStr;

use http::header::{
    ACCESS_CONTROL_ALLOW_CREDENTIALS, ACCESS_CONTROL_ALLOW_HEADERS, ACCESS_CONTROL_ALLOW_METHODS,
    ACCESS_CONTROL_ALLOW_ORIGIN, ACCESS_CONTROL_REQUEST_HEADERS, ACCESS_CONTROL_REQUEST_METHOD,
    ORIGIN, VARY,
};
use http::{HeaderMap, HeaderName, HeaderValue, Method};
use url::Url;

use super::hostname::AppHost;
use super::pattern::Pattern;

/// A template's setting.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Behavior {
    /// The proxy answers preflights and decides.
    #[default]
    Simple,
    /// The app sees everything and decides itself.
    Passthru,
}

impl Behavior {
    /// The text in templates and tokens.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Simple => "simple",
            Self::Passthru => "passthru",
        }
    }
}

/// A text that is no behaviour.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("'{0}' is no CORS behavior; there are simple and passthru")]
pub struct BehaviorError(String);

impl FromStr for Behavior {
    type Err = BehaviorError;

    fn from_str(text: &str) -> Result<Self, BehaviorError> {
        [Self::Simple, Self::Passthru]
            .into_iter()
            .find(|behavior| behavior.as_str() == text)
            .ok_or_else(|| BehaviorError(text.to_owned()))
    }
}

const METHODS: [&str; 7] = ["HEAD", "GET", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"];

/// Whether a request is a preflight: OPTIONS that asks for a method.
pub fn is_preflight(method: &Method, headers: &HeaderMap) -> bool {
    method == Method::OPTIONS && headers.contains_key(ACCESS_CONTROL_REQUEST_METHOD)
}

/// The origin of a request, when it is an app of `user` under `pattern`. Scheme and port are not
/// compared.
pub fn allowed_origin<'a>(
    headers: &'a HeaderMap,
    pattern: &Pattern,
    user: &str,
) -> Option<&'a HeaderValue> {
    let origin = headers.get(ORIGIN)?;
    let url = Url::parse(origin.to_str().ok()?).ok()?;
    let app: AppHost = pattern.capture(url.host_str()?)?.parse().ok()?;
    (app.user == user).then_some(origin)
}

/// The headers of the answer to a preflight; its status is 200 and its body empty. They depend on
/// nothing but the two host names, so they are given before anybody is authenticated.
pub fn preflight(headers: &HeaderMap, pattern: &Pattern, user: &str) -> HeaderMap {
    let mut answer = HeaderMap::new();
    for name in [
        "Origin",
        "Access-Control-Request-Method",
        "Access-Control-Request-Headers",
    ] {
        answer.append(VARY, HeaderValue::from_static(name));
    }
    let method = headers
        .get(ACCESS_CONTROL_REQUEST_METHOD)
        .and_then(|m| m.to_str().ok());
    let method = method.map(str::to_ascii_uppercase).unwrap_or_default();
    let (Some(origin), true) = (
        allowed_origin(headers, pattern, user),
        METHODS.contains(&method.as_str()),
    ) else {
        return answer;
    };
    answer.insert(ACCESS_CONTROL_ALLOW_ORIGIN, origin.clone());
    if let Ok(method) = HeaderValue::from_str(&method) {
        answer.insert(ACCESS_CONTROL_ALLOW_METHODS, method);
    }
    if let Some(asked) = requested_headers(headers) {
        answer.insert(ACCESS_CONTROL_ALLOW_HEADERS, asked);
    }
    answer.insert(
        ACCESS_CONTROL_ALLOW_CREDENTIALS,
        HeaderValue::from_static("true"),
    );
    answer
}

/// What is added to the answer of a request that is no preflight.
pub fn actual(headers: &HeaderMap, pattern: &Pattern, user: &str) -> HeaderMap {
    let mut answer = HeaderMap::new();
    answer.append(VARY, HeaderValue::from_static("Origin"));
    if let Some(origin) = allowed_origin(headers, pattern, user) {
        answer.insert(ACCESS_CONTROL_ALLOW_ORIGIN, origin.clone());
        answer.insert(
            ACCESS_CONTROL_ALLOW_CREDENTIALS,
            HeaderValue::from_static("true"),
        );
    }
    answer
}

/// Removes the app's own decisions from its answer: the four allow headers, and from `Vary` what
/// belongs to them, also inside lists.
pub fn strip(headers: &mut HeaderMap) {
    for name in [
        ACCESS_CONTROL_ALLOW_ORIGIN,
        ACCESS_CONTROL_ALLOW_CREDENTIALS,
        ACCESS_CONTROL_ALLOW_METHODS,
        ACCESS_CONTROL_ALLOW_HEADERS,
    ] {
        headers.remove(name);
    }
    let lines: Vec<HeaderValue> = headers.get_all(VARY).iter().cloned().collect();
    headers.remove(VARY);
    for line in lines {
        if let Some(kept) = kept_vary(&line) {
            headers.append(VARY, kept);
        }
    }
}

fn kept_vary(line: &HeaderValue) -> Option<HeaderValue> {
    let Ok(text) = line.to_str() else {
        return Some(line.clone());
    };
    let ours = |name: &str| {
        [
            "origin",
            "access-control-request-headers",
            "access-control-request-method",
            "access-control-request-methods",
        ]
        .iter()
        .any(|own| own.eq_ignore_ascii_case(name))
    };
    let kept: Vec<&str> = text
        .split(',')
        .map(str::trim)
        .filter(|name| !name.is_empty() && !ours(name))
        .collect();
    if kept.is_empty() {
        return None;
    }
    HeaderValue::from_str(&kept.join(", ")).ok()
}

/// The asked header names in canonical case, as one list.
fn requested_headers(headers: &HeaderMap) -> Option<HeaderValue> {
    let asked = headers.get(ACCESS_CONTROL_REQUEST_HEADERS)?.to_str().ok()?;
    let names: Vec<String> = asked
        .split(',')
        .map(str::trim)
        .filter(|name| HeaderName::from_bytes(name.as_bytes()).is_ok())
        .map(canonical)
        .collect();
    if names.is_empty() {
        return None;
    }
    HeaderValue::from_str(&names.join(", ")).ok()
}

/// `x-got-host` as `X-Got-Host`.
pub(crate) fn canonical(name: &str) -> String {
    let word = |word: &str| match word.split_at_checked(1) {
        Some((first, rest)) => first.to_ascii_uppercase() + &rest.to_ascii_lowercase(),
        None => String::new(),
    };
    name.split('-').map(word).collect::<Vec<_>>().join("-")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn vary_lists_lose_only_what_is_ours() {
        let mut headers = HeaderMap::new();
        headers.append(VARY, HeaderValue::from_static("Accept-Encoding, origin"));
        headers.append(
            VARY,
            HeaderValue::from_static("Access-Control-Request-Method"),
        );
        strip(&mut headers);
        assert_eq!(
            headers.get_all(VARY).iter().collect::<Vec<_>>(),
            ["Accept-Encoding"]
        );
    }

    #[test]
    fn asked_headers_come_back_in_canonical_case() {
        let pattern = "*.example.com".parse().unwrap();
        let mut headers = HeaderMap::new();
        headers.insert(
            ORIGIN,
            HeaderValue::from_static("https://80--a--w--u.example.com"),
        );
        headers.insert(
            ACCESS_CONTROL_REQUEST_METHOD,
            HeaderValue::from_static("put"),
        );
        let asked = HeaderValue::from_static("x-a, CONTENT-type");
        headers.insert(ACCESS_CONTROL_REQUEST_HEADERS, asked);
        let answer = preflight(&headers, &pattern, "u");
        assert_eq!(answer[ACCESS_CONTROL_ALLOW_HEADERS], "X-A, Content-Type");
        assert_eq!(answer[ACCESS_CONTROL_ALLOW_METHODS], "PUT");
    }
}
