//! Templates and their settings.

use axum::extract::{Path, State};
use axum::routing::get;
use axum::{Json, Router};
use bytes::Bytes;
use http::StatusCode;
use relay_wire::rest::{Template as TemplateBody, UpdateTemplate};
use uuid::Uuid;

use super::auth::Caller;
use super::{Refusal, read_body, views};
use crate::state::Shared;
use crate::store::Template;

pub(super) fn routes() -> Router<Shared> {
    Router::new()
        .route("/templates", get(list))
        .route("/templates/{id}", get(by_id).patch(update))
        .route("/organizations/{organization}/templates", get(list))
        .route(
            "/organizations/{organization}/templates/{name}",
            get(by_name),
        )
}

async fn list(
    State(state): State<Shared>,
    _caller: Caller,
) -> Result<Json<Vec<TemplateBody>>, Refusal> {
    let found = state.store.templates().await?;
    Ok(Json(found.iter().map(views::template).collect()))
}

async fn by_id(
    State(state): State<Shared>,
    _caller: Caller,
    Path(id): Path<String>,
) -> Result<Json<TemplateBody>, Refusal> {
    Ok(Json(views::template(&known(&state, &id).await?)))
}

async fn by_name(
    State(state): State<Shared>,
    _caller: Caller,
    Path((_, name)): Path<(String, String)>,
) -> Result<Json<TemplateBody>, Refusal> {
    let found = state.store.template_by_name(&name).await?;
    let found = found.ok_or_else(missing)?;
    Ok(Json(views::template(&found)))
}

async fn update(
    State(state): State<Shared>,
    caller: Caller,
    Path(id): Path<String>,
    body: Bytes,
) -> Result<Json<TemplateBody>, Refusal> {
    let template = known(&state, &id).await?;
    if !caller.user.is_admin {
        let message = "Only administrators may change templates.";
        return Err(Refusal::new(StatusCode::FORBIDDEN, message));
    }
    let wanted: UpdateTemplate = read_body(&body)?;
    let maximum = read("max_port_share_level", wanted.max_port_share_level)?;
    let cors = read("cors_behavior", wanted.cors_behavior)?;
    state.store.set_template(template.id, maximum, cors).await?;
    state.changed();
    Ok(Json(views::template(&known(&state, &id).await?)))
}

fn read<T>(field: &str, text: Option<String>) -> Result<Option<T>, Refusal>
where
    T: std::str::FromStr<Err: std::fmt::Display>,
{
    let text = text.filter(|text| !text.is_empty());
    let parsed = text.map(|text| text.parse()).transpose();
    parsed.map_err(|error: T::Err| Refusal::bad(error.to_string()).field(field, error.to_string()))
}

fn missing() -> Refusal {
    Refusal::not_found("There is no such template.")
}

async fn known(state: &Shared, id: &str) -> Result<Template, Refusal> {
    let id = Uuid::parse_str(id).map_err(|_| missing())?;
    state.store.template(id).await?.ok_or_else(missing)
}
