//! Who looks at a page: the session cookie, and what it stands for.

use axum::extract::FromRequestParts;
use axum::response::{IntoResponse, Response};
use chrono::{DateTime, Utc};
use http::HeaderMap;
use http::header::HeaderValue;
use http::request::Parts;
use uuid::Uuid;

use super::{Trouble, guard, see_other};
use crate::apps::cookies::SESSION;
use crate::apps::settings::Settings;
use crate::state::{Shared, State};
use crate::store::{Scope, User, Workspace};

/// Seconds that a browser keeps its session.
pub(super) const KEEP: i64 = 7 * 24 * 3600;
/// Longest token that is looked up.
const TOKEN: usize = 128;

/// Somebody who is signed in.
#[derive(Clone)]
pub(super) struct Visitor {
    pub(super) user: User,
    pub(super) token: String,
    expires_at: DateTime<Utc>,
}

impl Visitor {
    /// The visitor of a request, if the session is still good.
    pub(super) async fn find(state: &State, headers: &HeaderMap) -> Result<Option<Self>, Trouble> {
        let token = guard::session_cookie(headers, SESSION).filter(|token| token.len() <= TOKEN);
        let Some(token) = token else { return Ok(None) };
        let session = state.store.session(token).await?;
        Ok(session
            .filter(|session| session.scope == Scope::All)
            .map(|session| Self {
                user: session.user,
                token: token.to_owned(),
                expires_at: session.expires_at,
            }))
    }

    /// Whether the session is good at this moment.
    pub(super) async fn is_current(&self, state: &State) -> bool {
        let found = state.store.session(&self.token).await;
        self.expires_at > crate::store::now() && matches!(found, Ok(Some(_)))
    }

    /// What forms of this session send back.
    pub(super) fn form_token(&self) -> String {
        guard::form_token(&self.token)
    }

    /// Refuses a form that did not come from a page of this session.
    pub(super) fn check(
        &self,
        state: &State,
        headers: &HeaderMap,
        sent: &str,
    ) -> Result<(), Trouble> {
        if guard::is_own(headers, &state.access_url) && guard::is_form_token(sent, &self.token) {
            Ok(())
        } else {
            let text = "This form did not come from a page of your present session. Open the \
                        page again and repeat what you did.";
            Err(Trouble::new(
                http::StatusCode::FORBIDDEN,
                "Form refused",
                text,
            ))
        }
    }

    /// The workspace of that id, if there is one that the visitor may see.
    pub(super) async fn workspace(&self, state: &State, id: &str) -> Result<Workspace, Trouble> {
        let id = Uuid::parse_str(id).map_err(|_| Trouble::no_workspace())?;
        let found = state.store.workspace(id).await?;
        found
            .filter(|found| self.may_reach(found.owner_id))
            .ok_or_else(Trouble::no_workspace)
    }

    pub(super) fn may_reach(&self, owner: Uuid) -> bool {
        self.user.id == owner || self.user.is_admin
    }
}

impl FromRequestParts<Shared> for Visitor {
    type Rejection = Response;

    async fn from_request_parts(parts: &mut Parts, state: &Shared) -> Result<Self, Response> {
        let found = Self::find(state, &parts.headers).await;
        match found.map_err(IntoResponse::into_response)? {
            Some(visitor) => Ok(visitor),
            None => Err(sign_in(parts)),
        }
    }
}

/// To the login page and back; only where coming back makes sense.
fn sign_in(parts: &Parts) -> Response {
    if parts.uri.path().ends_with("/live") {
        // The page behind it asks for itself then, and is sent to the login page.
        return http::StatusCode::UNAUTHORIZED.into_response();
    }
    let target = match parts.method {
        http::Method::GET => parts.uri.path_and_query().map_or("/", |path| path.as_str()),
        _ => "/workspaces",
    };
    let query = url::form_urlencoded::Serializer::new(String::new())
        .append_pair("redirect", target)
        .finish();
    let location = format!("/login?{query}");
    if !parts.headers.contains_key("hx-request") {
        return see_other(&location);
    }
    // A part of a page cannot hold the login page.
    let mut answer = http::StatusCode::UNAUTHORIZED.into_response();
    if let Ok(location) = HeaderValue::from_str(&location) {
        answer.headers_mut().insert("hx-redirect", location);
    }
    answer
}

/// The cookie that begins a session.
pub(super) fn begin(token: &str, settings: &Settings) -> Option<HeaderValue> {
    let attributes = settings.cookie_attributes();
    let cookie = format!("{SESSION}={token}; Path=/; Max-Age={KEEP}; {attributes}");
    HeaderValue::from_str(&cookie).ok()
}

/// The cookie that ends it.
pub(super) fn end(settings: &Settings) -> Option<HeaderValue> {
    let attributes = settings.cookie_attributes();
    HeaderValue::from_str(&format!("{SESSION}=; Path=/; Max-Age=0; {attributes}")).ok()
}
