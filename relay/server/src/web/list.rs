//! The list of workspaces.

use askama::Template;
use axum::extract::State;
use axum::response::Response;

use super::view::{Status, is_running, status};
use super::visits::ago;
use super::{Frame, Trouble, Visitor, html};
use crate::state::{Shared, State as Server};
use crate::store::WorkspaceFilter;

#[derive(Template)]
#[template(path = "workspaces.html")]
struct Page {
    frame: Frame,
    rows: Rows,
}

/// The part that changes while it is looked at.
#[derive(Template)]
#[template(path = "rows.html")]
pub(super) struct Rows {
    user: String,
    rows: Vec<Row>,
}

struct Row {
    owner: String,
    name: String,
    foreign: bool,
    running: bool,
    template: String,
    agents: Vec<(String, Status)>,
    used: String,
}

pub(super) async fn page(
    State(state): State<Shared>,
    visitor: Visitor,
) -> Result<Response, Trouble> {
    let page = Page {
        rows: rows(&state, &visitor).await?,
        frame: Frame::of(&visitor),
    };
    Ok(html(&page))
}

pub(super) async fn rows(state: &Server, visitor: &Visitor) -> Result<Rows, Trouble> {
    let own = visitor.user.id;
    let filter = WorkspaceFilter {
        owner: (!visitor.user.is_admin).then_some(own),
        name: None,
    };
    let mut found = state.store.workspaces(&filter).await?;
    found.sort_by_key(|workspace| workspace.owner_id != own);
    let row = |workspace: &crate::store::Workspace| Row {
        owner: workspace.owner_name.clone(),
        name: workspace.name.clone(),
        foreign: workspace.owner_id != own,
        running: is_running(workspace),
        template: workspace
            .template
            .as_ref()
            .map_or(String::new(), |found| found.name.clone()),
        agents: workspace
            .agents
            .iter()
            .map(|agent| (agent.name.clone(), status(state, workspace, agent)))
            .collect(),
        used: ago(workspace.last_used_at),
    };
    Ok(Rows {
        user: visitor.user.username.clone(),
        rows: found.iter().map(row).collect(),
    })
}
