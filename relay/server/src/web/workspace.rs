//! The page of a workspace.

use std::time::Duration;

use askama::Template;
use axum::Form;
use axum::extract::{Path, State};
use axum::response::Response;
use http::HeaderMap;
use serde::Deserialize;

use super::view::{Known, Live, listening};
use super::{Frame, Trouble, Visitor, html, see_other};
use crate::state::{Shared, State as Server};
use crate::store::{Transition, Workspace};

/// How long a page waits for what agents say; the rest comes live.
const WAIT: Duration = Duration::from_millis(700);

#[derive(Template)]
#[template(path = "workspace.html")]
struct Page {
    frame: Frame,
    owner: String,
    name: String,
    foreign: bool,
    template: String,
    notice: String,
    bad: bool,
    live: Live,
}

pub(super) async fn page(
    State(state): State<Shared>,
    Path((owner, name)): Path<(String, String)>,
    request: axum::extract::Request,
) -> Result<Response, Response> {
    use axum::response::IntoResponse;
    let Some(owner) = owner.strip_prefix('@').map(str::to_owned) else {
        return Err(super::not_found(&state));
    };
    let (mut parts, _) = request.into_parts();
    let visitor = <Visitor as axum::extract::FromRequestParts<Shared>>::from_request_parts(
        &mut parts, &state,
    )
    .await?;
    let found = by_name(&state, &visitor, &owner, &name).await;
    let found = found.map_err(IntoResponse::into_response)?;
    show(&state, &visitor, &found, String::new(), false)
        .await
        .map_err(IntoResponse::into_response)
}

async fn by_name(
    state: &Server,
    visitor: &Visitor,
    owner: &str,
    name: &str,
) -> Result<Workspace, Trouble> {
    let owner = if owner == "me" || owner == visitor.user.username {
        Some(visitor.user.clone())
    } else {
        state.store.user_by_name(owner).await?
    };
    let owner = owner.filter(|owner| visitor.may_reach(owner.id));
    let owner = owner.ok_or_else(Trouble::no_workspace)?;
    let found = state.store.workspace_by_name(owner.id, name).await?;
    found.ok_or_else(Trouble::no_workspace)
}

/// The page, with what came of the last form.
pub(super) async fn show(
    state: &Server,
    visitor: &Visitor,
    workspace: &Workspace,
    notice: String,
    bad: bool,
) -> Result<Response, Trouble> {
    let page = Page {
        frame: Frame::of(visitor),
        owner: workspace.owner_name.clone(),
        name: workspace.name.clone(),
        foreign: workspace.owner_id != visitor.user.id,
        template: workspace
            .template
            .as_ref()
            .map_or(String::new(), |found| found.name.clone()),
        notice,
        bad,
        live: live(state, visitor, workspace, WAIT).await?,
    };
    Ok(html(&page))
}

/// The part that changes, as it is now.
pub(super) async fn live(
    state: &Server,
    visitor: &Visitor,
    workspace: &Workspace,
    wait: Duration,
) -> Result<Live, Trouble> {
    let (ports, known) = tokio::join!(
        listening(state, workspace, wait),
        Known::of(state, workspace.id, None)
    );
    let token = visitor.form_token();
    Ok(Live::new(state, workspace, known?, &ports, token))
}

/// What the form that starts and stops sends.
#[derive(Deserialize)]
pub(super) struct Change {
    #[serde(default)]
    token: String,
    #[serde(default)]
    to: String,
}

pub(super) async fn set_state(
    State(state): State<Shared>,
    visitor: Visitor,
    Path(id): Path<String>,
    headers: HeaderMap,
    Form(sent): Form<Change>,
) -> Result<Response, Trouble> {
    visitor.check(&state, &headers, &sent.token)?;
    let workspace = visitor.workspace(&state, &id).await?;
    let wanted = Transition::parse(&sent.to).filter(|to| *to != workspace.build.transition);
    if let Some(wanted) = wanted {
        state.store.create_build(workspace.id, wanted).await?;
        state.changed();
    }
    Ok(see_other(&address(&workspace)))
}

/// The page's own address.
pub(super) fn address(workspace: &Workspace) -> String {
    format!("/@{}/{}", workspace.owner_name, workspace.name)
}
