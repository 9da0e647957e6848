//! This server's own credentials, which never reach an app (coder_facts §2.12).

use std::borrow::Cow;

use http::header::{AUTHORIZATION, COOKIE, HeaderMap, HeaderValue};
use http::{HeaderName, Version};
use relay_wire::rest::{TOKEN_COOKIE, TOKEN_HEADER};

use super::login::KEY_PARAMETER;
use crate::apps::cookies;

/// Query parameter that terminals may carry a signed token in.
const TOKEN_PARAMETER: &str = "coder_signed_app_token_23db1dde";

/// Whether a text has the form of a session token or an app key.
pub(super) fn is_token(text: &str) -> bool {
    let word = |word: &str| word.bytes().all(|byte| byte.is_ascii_alphanumeric());
    text.len() == 33
        && text
            .split_once('-')
            .is_some_and(|(id, secret)| id.len() == 10 && word(id) && word(secret))
}

/// Removes them from the headers of a request. Cookies that are left on several lines of HTTP/2
/// become one line, as HTTP/1.1 wants it.
pub(super) fn strip_headers(headers: &mut HeaderMap, version: Version) {
    headers.remove(TOKEN_HEADER);
    let bearer = headers
        .get(AUTHORIZATION)
        .and_then(|value| value.to_str().ok());
    let bearer = bearer.and_then(|value| value.split_once(' '));
    if bearer.is_some_and(|(scheme, token)| {
        scheme.eq_ignore_ascii_case("bearer") && is_token(token.trim())
    }) {
        headers.remove(AUTHORIZATION);
    }
    let several = version == Version::HTTP_2 && headers.get_all(COOKIE).iter().nth(1).is_some();
    let mine = |line: &HeaderValue| {
        let line = line.as_bytes();
        let has = |part: &[u8]| line.windows(part.len()).any(|window| window == part);
        has(b"coder_") || has(b"oauth_")
    };
    if !several && !headers.get_all(COOKIE).iter().any(mine) {
        return;
    }
    let lines: Vec<Vec<u8>> = headers
        .get_all(COOKIE)
        .iter()
        .map(|line| match line.to_str() {
            Ok(text) => cookies::without_own(text).into_bytes(),
            Err(_) => without_own_bytes(line.as_bytes()),
        })
        .filter(|line| !line.is_empty())
        .collect();
    headers.remove(COOKIE);
    let lines = if several {
        vec![lines.join(&b"; "[..])]
    } else {
        lines
    };
    for line in lines.iter().filter(|line| !line.is_empty()) {
        if let Ok(line) = HeaderValue::from_bytes(line) {
            headers.append(COOKIE, line);
        }
    }
}

/// The same for a line that is no text: other cookies may hold any byte.
fn without_own_bytes(line: &[u8]) -> Vec<u8> {
    let kept: Vec<&[u8]> = line
        .split(|byte| *byte == b';')
        .map(<[u8]>::trim_ascii)
        .filter(|cookie| {
            let name = cookie.split(|byte| *byte == b'=').next().unwrap_or(cookie);
            let own = |name: &str| cookies::without_own(name).is_empty();
            !cookie.is_empty() && !std::str::from_utf8(name).is_ok_and(own)
        })
        .collect();
    kept.join(&b"; "[..])
}

/// A query without them; everything else stays as it was written.
pub(super) fn strip_query(query: &str) -> Option<Cow<'_, str>> {
    if !query.contains("token") && !query.contains("coder") && !query.contains('%') {
        return Some(Cow::Borrowed(query));
    }
    let own = |pair: &&str| {
        let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
        let mut decoded = url::form_urlencoded::parse(name.as_bytes());
        let name = decoded.next().map_or(Cow::Borrowed(""), |(name, _)| name);
        match &*name {
            TOKEN_COOKIE | TOKEN_PARAMETER | KEY_PARAMETER => true,
            "access_token" => is_token(value),
            _ => false,
        }
    };
    let kept: Vec<&str> = query.split('&').filter(|pair| !own(pair)).collect();
    if kept.is_empty() {
        return None;
    }
    Some(Cow::Owned(kept.join("&")))
}

/// Removes the app's attempts to set them: they would take the visitor's place at other apps.
pub(super) fn strip_set_cookies(headers: &mut HeaderMap) {
    let name = http::header::SET_COOKIE;
    let own = |value: &HeaderValue| {
        let bytes = value.as_bytes();
        let name = bytes.split(|byte| *byte == b'=').next().unwrap_or(bytes);
        let name = std::str::from_utf8(name.trim_ascii()).unwrap_or("?");
        !name.is_empty() && cookies::without_own(name).is_empty()
    };
    if !headers.get_all(&name).iter().any(own) {
        return;
    }
    let kept: Vec<HeaderValue> = headers
        .get_all(&name)
        .iter()
        .filter(|value| !own(value))
        .cloned()
        .collect();
    headers.remove(&name);
    for value in kept {
        headers.append(&name, value);
    }
}

/// Removes what belongs to one connection only (RFC 9110 §7.6.1), and what its `Connection` header
/// names besides.
pub(super) fn strip_hop_by_hop(headers: &mut HeaderMap) {
    use http::header::{
        CONNECTION, PROXY_AUTHENTICATE, PROXY_AUTHORIZATION, TE, TRANSFER_ENCODING, UPGRADE,
    };
    if headers.contains_key(CONNECTION) {
        let named: Vec<HeaderName> = headers
            .get_all(CONNECTION)
            .iter()
            .filter_map(|line| line.to_str().ok())
            .flat_map(|line| line.split(','))
            .filter_map(|name| name.trim().parse().ok())
            // Without these two nobody knew where a message ends, or whom it is for.
            .filter(|name| name != http::header::HOST && name != http::header::CONTENT_LENGTH)
            .collect();
        for name in named {
            headers.remove(name);
        }
    }
    let trailers = headers
        .get(TE)
        .and_then(|te| te.to_str().ok())
        .is_some_and(|te| {
            te.split(',')
                .any(|t| t.trim().eq_ignore_ascii_case("trailers"))
        });
    for name in [
        CONNECTION,
        PROXY_AUTHENTICATE,
        PROXY_AUTHORIZATION,
        TE,
        TRANSFER_ENCODING,
        UPGRADE,
        HeaderName::from_static("keep-alive"),
        HeaderName::from_static("proxy-connection"),
        HeaderName::from_static("http2-settings"),
    ] {
        headers.remove(name);
    }
    if trailers {
        headers.insert(TE, HeaderValue::from_static("trailers"));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TOKEN: &str = "abcdefghij-0123456789012345678901";

    fn headers(lines: &[(&str, &str)]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for (name, value) in lines {
            let name: HeaderName = name.parse().unwrap();
            headers.append(name, HeaderValue::from_str(value).unwrap());
        }
        headers
    }

    #[test]
    fn no_own_credential_is_left_in_the_headers() {
        let bearer = format!("Bearer {TOKEN}");
        let mut sent = headers(&[
            ("coder-session-token", TOKEN),
            ("authorization", &bearer),
            ("cookie", "a=1; coder_session_token=x"),
            ("cookie", "coder_signed_app_token=y"),
        ]);
        strip_headers(&mut sent, Version::HTTP_11);
        assert_eq!(sent, headers(&[("cookie", "a=1")]));
        let mut theirs = headers(&[("authorization", "Bearer something-else")]);
        strip_headers(&mut theirs, Version::HTTP_11);
        assert_eq!(theirs.len(), 1);
    }

    #[test]
    fn cookie_lines_of_http_2_become_one() {
        let mut sent = headers(&[("cookie", "a=1"), ("cookie", "b=2")]);
        strip_headers(&mut sent, Version::HTTP_2);
        assert_eq!(sent, headers(&[("cookie", "a=1; b=2")]));
    }

    #[test]
    fn a_cookie_that_is_no_text_hides_nothing() {
        let mut sent = HeaderMap::new();
        let line = HeaderValue::from_bytes(b"x=\xff; coder_session_token=t").unwrap();
        sent.insert(COOKIE, line);
        strip_headers(&mut sent, Version::HTTP_11);
        assert_eq!(sent[COOKIE].as_bytes(), b"x=\xff");
    }

    #[test]
    fn queries_lose_own_tokens_and_nothing_else() {
        let own = format!("access_token={TOKEN}");
        for (query, kept) in [
            ("a=1&b=%20", Some("a=1&b=%20")),
            ("a=1&coder_session_token=x&b", Some("a=1&b")),
            ("%63oder_session_token=x", None),
            (own.as_str(), None),
            ("access_token=theirs", Some("access_token=theirs")),
        ] {
            assert_eq!(strip_query(query).as_deref(), kept, "{query}");
        }
    }

    #[test]
    fn an_app_cannot_set_own_cookies() {
        let mut answer = headers(&[
            ("set-cookie", "coder_session_token=evil; Path=/"),
            ("set-cookie", "theme=dark"),
            (
                "set-cookie",
                "coder_subdomain_app_session_token_1=x; Domain=.x.test",
            ),
        ]);
        strip_set_cookies(&mut answer);
        assert_eq!(answer, headers(&[("set-cookie", "theme=dark")]));
    }

    #[test]
    fn what_the_connection_header_names_goes_with_it() {
        let mut sent = headers(&[
            ("connection", "close, x-mine, host"),
            ("x-mine", "1"),
            ("host", "a"),
            ("te", "gzip, trailers"),
            ("transfer-encoding", "chunked"),
        ]);
        strip_hop_by_hop(&mut sent);
        assert_eq!(sent, headers(&[("host", "a"), ("te", "trailers")]));
    }
}
