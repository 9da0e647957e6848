//! Accounts and sessions.

use axum::extract::{Path, State};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use bytes::Bytes;
use http::StatusCode;
use relay_wire::rest::{
    CreateFirstUser, CreatedFirstUser, LoginAnswer, LoginWithPassword, NewKey, User as UserBody,
};
use uuid::Uuid;

use super::auth::Caller;
use super::limits::{Anybody, LoginAttempt};
use super::{Refusal, read_body, views};
use crate::state::Shared;
use crate::store::User;

pub(super) fn routes() -> Router<Shared> {
    Router::new()
        .route("/users/first", get(has_first).post(create_first))
        .route("/users/login", post(login))
        .route("/users/logout", post(logout))
        .route("/users/{user}", get(user))
        .route("/users/{user}/keys", post(create_key))
}

async fn has_first(State(state): State<Shared>, _anybody: Anybody) -> Result<Response, Refusal> {
    if state.store.has_users().await? {
        let answer = serde_json::json!({"message": "The initial user has already been created."});
        Ok(Json(answer).into_response())
    } else {
        Err(Refusal::not_found(
            "The initial user has not been created yet.",
        ))
    }
}

async fn create_first(
    State(state): State<Shared>,
    _attempt: LoginAttempt,
    body: Bytes,
) -> Result<Response, Refusal> {
    let wanted: CreateFirstUser = read_body(&body)?;
    let made = state
        .store
        .create_first_user(
            &wanted.username,
            &wanted.email,
            &wanted.name,
            &wanted.password,
        )
        .await?;
    let answer = CreatedFirstUser {
        user_id: made.id,
        organization_id: Uuid::nil(),
    };
    Ok((StatusCode::CREATED, Json(answer)).into_response())
}

async fn login(
    State(state): State<Shared>,
    _attempt: LoginAttempt,
    body: Bytes,
) -> Result<Response, Refusal> {
    let login: LoginWithPassword = read_body(&body)?;
    let found = state.store.check_password(&login.email, login.password);
    let Some(user) = found.await? else {
        return Err(Refusal::unauthorized("Incorrect email or password."));
    };
    let answer = LoginAnswer {
        session_token: state.store.create_token(user.id).await?,
    };
    Ok((StatusCode::CREATED, Json(answer)).into_response())
}

async fn logout(State(state): State<Shared>, caller: Caller) -> Result<Response, Refusal> {
    state.store.delete_token(&caller.token).await?;
    Ok(Json(serde_json::json!({"message": "Logged out!"})).into_response())
}

async fn user(
    State(state): State<Shared>,
    caller: Caller,
    Path(name): Path<String>,
) -> Result<Json<UserBody>, Refusal> {
    let user = named(&state, &caller, &name).await?;
    Ok(Json(views::user(&user)))
}

async fn create_key(
    State(state): State<Shared>,
    caller: Caller,
    Path(name): Path<String>,
) -> Result<Response, Refusal> {
    let user = named(&state, &caller, &name).await?;
    if user.id != caller.user.id {
        return Err(Refusal::not_found("There is no such user."));
    }
    let answer = NewKey {
        key: state.store.create_token(user.id).await?,
    };
    Ok((StatusCode::CREATED, Json(answer)).into_response())
}

/// The user of a path: `me`, a name or an id. Others are visible to administrators only.
pub(super) async fn named(state: &Shared, caller: &Caller, name: &str) -> Result<User, Refusal> {
    if name == "me" || name == caller.user.username {
        return Ok(caller.user.clone());
    }
    let found = match Uuid::parse_str(name) {
        Ok(id) => state.store.user_by_id(id).await?,
        Err(_) => state.store.user_by_name(name).await?,
    };
    found
        .filter(|user| caller.may_reach(user.id))
        .ok_or_else(|| Refusal::not_found(format!("There is no user {name:?} that you can see.")))
}
