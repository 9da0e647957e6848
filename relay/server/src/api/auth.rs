//! Who asks: the token of a request, and whose it is.

use axum::extract::FromRequestParts;
use http::header::{AUTHORIZATION, COOKIE};
use http::request::Parts;
use relay_wire::rest::{TOKEN_COOKIE, TOKEN_HEADER};
use uuid::Uuid;

use super::Refusal;
use crate::state::Shared;
use crate::store::{AgentAccess, User};

/// Longest token that is looked up.
const TOKEN: usize = 128;

/// The user who asks, with the token.
pub(super) struct Caller {
    pub(super) user: User,
    pub(super) token: String,
}

impl Caller {
    /// Whether the user may see and reach what belongs to `owner`.
    pub(super) fn may_reach(&self, owner: Uuid) -> bool {
        self.user.id == owner || self.user.is_admin
    }
}

impl FromRequestParts<Shared> for Caller {
    type Rejection = Refusal;

    async fn from_request_parts(parts: &mut Parts, state: &Shared) -> Result<Self, Refusal> {
        let Some(token) = session_token(parts) else {
            return Err(unknown(
                parts,
                state,
                "You must be signed in: no token was sent.",
            ));
        };
        match state.store.user_by_token(&token).await? {
            Some(user) => {
                state.limits.user(&user, parts)?;
                Ok(Self { user, token })
            }
            None => Err(unknown(
                parts,
                state,
                "The session token is not valid or has expired.",
            )),
        }
    }
}

/// The agent that asks.
pub(super) struct CallingAgent(pub(super) AgentAccess);

impl FromRequestParts<Shared> for CallingAgent {
    type Rejection = Refusal;

    async fn from_request_parts(parts: &mut Parts, state: &Shared) -> Result<Self, Refusal> {
        let Some(token) = session_token(parts) else {
            return Err(unknown(
                parts,
                state,
                "An agent token is needed: none was sent.",
            ));
        };
        match state.store.agent_by_token(&token).await? {
            Some(agent) => Ok(Self(agent)),
            None => Err(unknown(parts, state, "The agent token is not valid.")),
        }
    }
}

/// The answer to one who is nobody, or to one who was nobody too often.
fn unknown(parts: &Parts, state: &Shared, message: &str) -> Refusal {
    let address = super::client_address(parts, state);
    match state.limits.stranger(address, parts) {
        Ok(()) => Refusal::unauthorized(message),
        Err(too_many) => too_many,
    }
}

/// The token, from the first place that has one.
fn session_token(parts: &Parts) -> Option<String> {
    let token = session_tokens(parts).next()?;
    (token.len() <= TOKEN).then_some(token)
}

/// All tokens of a request, from the places where one may be, in a fixed order.
pub(crate) fn session_tokens(parts: &Parts) -> impl Iterator<Item = String> + Send + use<> {
    let query = parts.uri.query().unwrap_or_default();
    [
        cookie(parts),
        parameter(query, TOKEN_COOKIE),
        header(parts, TOKEN_HEADER),
        bearer(parts),
        parameter(query, "access_token"),
    ]
    .into_iter()
    .flatten()
}

fn cookie(parts: &Parts) -> Option<String> {
    let cookies = parts.headers.get_all(COOKIE).iter();
    let pairs = cookies.filter_map(|value| value.to_str().ok());
    pairs
        .flat_map(|text| text.split(';'))
        .filter_map(|pair| pair.trim().split_once('='))
        .find(|(name, value)| *name == TOKEN_COOKIE && !value.is_empty())
        .map(|(_, value)| value.trim_matches('"').to_owned())
}

fn header(parts: &Parts, name: &str) -> Option<String> {
    let value = parts.headers.get(name)?.to_str().ok()?.trim();
    (!value.is_empty()).then(|| value.to_owned())
}

fn bearer(parts: &Parts) -> Option<String> {
    let value = header(parts, AUTHORIZATION.as_str())?;
    let (scheme, token) = value.split_once(' ')?;
    scheme
        .eq_ignore_ascii_case("bearer")
        .then(|| token.trim().to_owned())
}

/// A parameter of a query, decoded.
pub(super) fn parameter(query: &str, name: &str) -> Option<String> {
    url::form_urlencoded::parse(query.as_bytes())
        .find(|(key, value)| key == name && !value.is_empty())
        .map(|(_, value)| value.into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn token(uri: &str, headers: &[(&str, &str)]) -> Option<String> {
        let mut request = http::Request::builder().uri(uri);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        session_token(&request.body(()).unwrap().into_parts().0)
    }

    #[test]
    fn tokens_are_looked_for_in_a_fixed_order() {
        let all = [
            ("Cookie", "a=b; coder_session_token=cookie"),
            ("Coder-Session-Token", "header"),
            ("Authorization", "Bearer bearer"),
        ];
        let query = "/?coder_session_token=query&access_token=access";
        assert_eq!(token(query, &all).as_deref(), Some("cookie"));
        assert_eq!(token(query, &all[1..]).as_deref(), Some("query"));
        let access = "/?access_token=access";
        assert_eq!(token(access, &all[1..]).as_deref(), Some("header"));
        assert_eq!(token(access, &all[2..]).as_deref(), Some("bearer"));
        assert_eq!(token(access, &[]).as_deref(), Some("access"));
        assert_eq!(token("/", &[("Authorization", "Basic x")]), None);
        assert_eq!(
            token(&format!("/?access_token={}", "x".repeat(200)), &[]),
            None
        );
    }
}
