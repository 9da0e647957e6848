//! Workspaces and their builds.

use axum::extract::{Path, RawQuery, State};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use bytes::Bytes;
use http::StatusCode;
use relay_wire::rest::{self, CreateBuild, TemplateVersion, WorkspaceBuild, Workspaces};
use uuid::Uuid;

use super::auth::{Caller, parameter};
use super::users::named;
use super::{Refusal, empty, read_body, views};
use crate::state::Shared;
use crate::store::{Transition, Workspace, WorkspaceFilter};

/// Longest page of a list.
const PAGE: usize = 1000;

pub(super) fn routes() -> Router<Shared> {
    Router::new()
        .route("/users/{user}/workspace/{name}", get(by_name))
        .route("/workspaces", get(list))
        .route("/workspaces/{id}", get(by_id))
        .route("/workspaces/{id}/builds", post(create_build))
        .route("/workspaces/{id}/usage", post(usage))
        .route("/workspaces/{id}/watch", get(super::watch::workspace))
        .route("/workspacebuilds/{id}", get(build))
        .route("/templateversions/{id}", get(template_version))
}

async fn by_name(
    State(state): State<Shared>,
    caller: Caller,
    Path((owner, name)): Path<(String, String)>,
) -> Result<Json<rest::Workspace>, Refusal> {
    let owner = named(&state, &caller, &owner).await?;
    let found = state.store.workspace_by_name(owner.id, &name).await?;
    let found = found.ok_or_else(|| {
        Refusal::not_found(format!("{} has no workspace {name:?}.", owner.username))
    })?;
    Ok(Json(views::workspace(&found, &state.presence)))
}

async fn by_id(
    State(state): State<Shared>,
    caller: Caller,
    Path(id): Path<String>,
) -> Result<Json<rest::Workspace>, Refusal> {
    let found = reachable(&state, &caller, &id).await?;
    Ok(Json(views::workspace(&found, &state.presence)))
}

async fn list(
    State(state): State<Shared>,
    caller: Caller,
    RawQuery(query): RawQuery,
) -> Result<Json<Workspaces>, Refusal> {
    let query = query.unwrap_or_default();
    let number = |name| parameter(&query, name).and_then(|text| text.parse::<usize>().ok());
    let search = parameter(&query, "q").unwrap_or_default();
    let filter = filter(&state, &caller, &search).await?;
    let found = match filter {
        Some(filter) => state.store.workspaces(&filter).await?,
        None => Vec::new(),
    };
    let limit = number("limit").filter(|limit| *limit > 0).unwrap_or(PAGE);
    let page = found
        .iter()
        .skip(number("offset").unwrap_or(0))
        .take(limit.min(PAGE));
    Ok(Json(Workspaces {
        workspaces: page
            .map(|found| views::workspace(found, &state.presence))
            .collect(),
        count: i64::try_from(found.len()).unwrap_or(i64::MAX),
    }))
}

/// Reads a search such as `owner:me name:dev`; `None` where it can find nothing.
async fn filter(
    state: &Shared,
    caller: &Caller,
    search: &str,
) -> Result<Option<WorkspaceFilter>, Refusal> {
    let mut filter = WorkspaceFilter {
        owner: (!caller.user.is_admin).then_some(caller.user.id),
        name: None,
    };
    for word in search.split_whitespace() {
        let (key, value) = word.split_once(':').unwrap_or(("name", word));
        let value = value.trim_matches('"');
        match key {
            "owner" => match named(state, caller, value).await {
                Ok(user) => filter.owner = Some(user.id),
                Err(_) => return Ok(None),
            },
            "name" => filter.name = Some(value.to_owned()),
            key => {
                let message = format!("Query parameter {key:?} is not known; use owner: or name:.");
                return Err(Refusal::bad(message).field("q", format!("unknown {key:?}")));
            }
        }
    }
    Ok(Some(filter))
}

async fn create_build(
    State(state): State<Shared>,
    caller: Caller,
    Path(id): Path<String>,
    body: Bytes,
) -> Result<Response, Refusal> {
    let found = reachable(&state, &caller, &id).await?;
    let wanted: CreateBuild = read_body(&body)?;
    let answer = match wanted.transition {
        rest::Transition::Start => start_or_stop(&state, &found, Transition::Start).await?,
        rest::Transition::Stop => start_or_stop(&state, &found, Transition::Stop).await?,
        rest::Transition::Delete => {
            state.store.delete_workspace(found.id).await?;
            WorkspaceBuild {
                transition: rest::Transition::Delete,
                status: rest::BuildStatus::Deleted,
                resources: Vec::new(),
                ..views::build(&found, &found.build, &state.presence)
            }
        }
        rest::Transition::Other => {
            return Err(Refusal::bad("transition must be start, stop or delete.")
                .field("transition", "not one of start, stop, delete"));
        }
    };
    state.changed();
    Ok((StatusCode::CREATED, Json(answer)).into_response())
}

async fn start_or_stop(
    state: &Shared,
    workspace: &Workspace,
    transition: Transition,
) -> Result<WorkspaceBuild, Refusal> {
    let build = state.store.create_build(workspace.id, transition).await?;
    let changed = Workspace {
        build,
        ..workspace.clone()
    };
    Ok(views::build(&changed, &changed.build, &state.presence))
}

async fn build(
    State(state): State<Shared>,
    caller: Caller,
    Path(id): Path<String>,
) -> Result<Json<WorkspaceBuild>, Refusal> {
    let missing = || Refusal::not_found("There is no such build.");
    let id = Uuid::parse_str(&id).map_err(|_| missing())?;
    let build = state.store.build(id).await?.ok_or_else(missing)?;
    let found = state.store.workspace(build.workspace_id).await?;
    let found = found
        .filter(|found| caller.may_reach(found.owner_id))
        .ok_or_else(missing)?;
    Ok(Json(views::build(&found, &build, &state.presence)))
}

async fn usage(
    State(state): State<Shared>,
    caller: Caller,
    Path(id): Path<String>,
) -> Result<Response, Refusal> {
    let found = reachable(&state, &caller, &id).await?;
    state.store.touch_workspace(found.id).await?;
    Ok(empty(StatusCode::NO_CONTENT))
}

async fn template_version(
    _caller: Caller,
    Path(id): Path<String>,
) -> Result<Json<TemplateVersion>, Refusal> {
    let id = Uuid::parse_str(&id)
        .map_err(|_| Refusal::not_found("There is no such template version."))?;
    Ok(Json(views::template_version(id)))
}

/// The workspace of an id, if it is there and the user may see it: the answer is the same.
pub(super) async fn reachable(
    state: &Shared,
    caller: &Caller,
    id: &str,
) -> Result<Workspace, Refusal> {
    let missing = || Refusal::not_found("There is no such workspace that you can see.");
    let id = Uuid::parse_str(id).map_err(|_| missing())?;
    let found = state.store.workspace(id).await?;
    found
        .filter(|found| caller.may_reach(found.owner_id))
        .ok_or_else(missing)
}
