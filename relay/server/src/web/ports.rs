//! Opening and sharing ports.

use std::time::Duration;

use askama::Template;
use axum::Form;
use axum::extract::{Path, State};
use axum::response::Response;
use http::{HeaderMap, StatusCode};
use serde::Deserialize;

use super::view::{Live, port_url, who};
use super::{Trouble, Visitor, html, see_other, workspace};
use crate::apps::access::ShareLevel;
use crate::apps::hostname::Protocol;
use crate::apps::ports::{ShareError, ShareRequest, allowed};
use crate::state::{Shared, State as Server};
use crate::store::Workspace;

/// What the form of a port sends.
#[derive(Deserialize)]
pub(super) struct Sent {
    #[serde(default)]
    token: String,
    #[serde(default)]
    agent: String,
    #[serde(default)]
    port: String,
    #[serde(default)]
    protocol: String,
    /// `open`, or a level to share at.
    #[serde(default)]
    action: String,
}

/// The changed part of the page, and what was done.
#[derive(Template)]
#[template(path = "changed.html")]
struct Changed {
    notice: String,
    bad: bool,
    live: Live,
}

/// Opens a port in the browser, or changes who can see it.
pub(super) async fn act(
    State(state): State<Shared>,
    visitor: Visitor,
    Path(id): Path<String>,
    headers: HeaderMap,
    Form(sent): Form<Sent>,
) -> Result<Response, Trouble> {
    visitor.check(&state, &headers, &sent.token)?;
    let workspace = visitor.workspace(&state, &id).await?;
    let fragment = headers.contains_key("hx-request");
    let done = match sent.action.as_str() {
        "open" => match open(&state, &workspace, &sent) {
            Ok(url) => return Ok(see_other(&url)),
            Err(why) => Err(why),
        },
        _ => share(&state, &workspace, &sent).await?,
    };
    let bad = done.is_err();
    let notice = done.unwrap_or_else(|why| why);
    let mut answer = if fragment {
        let wait = Duration::from_millis(700);
        let live = workspace::live(&state, &visitor, &workspace, wait).await?;
        html(&Changed { notice, bad, live })
    } else if bad {
        workspace::show(&state, &visitor, &workspace, notice, bad).await?
    } else {
        return Ok(see_other(&workspace::address(&workspace)));
    };
    if bad {
        *answer.status_mut() = StatusCode::BAD_REQUEST;
    }
    Ok(answer)
}

fn open(state: &Server, workspace: &Workspace, sent: &Sent) -> Result<String, String> {
    let port = number(&sent.port)?;
    let port = allowed(port).ok_or_else(|| ShareError::Port(port).to_string())?;
    if !workspace
        .agents
        .iter()
        .any(|agent| agent.name == sent.agent)
    {
        return Err(ShareError::NoAgent(sent.agent.clone()).to_string());
    }
    let protocol = match sent.protocol.as_str() {
        "https" => Protocol::Https,
        _ => Protocol::Http,
    };
    port_url(state, workspace, &sent.agent, port, protocol)
}

async fn share(
    state: &Server,
    workspace: &Workspace,
    sent: &Sent,
) -> Result<Result<String, String>, Trouble> {
    let port = match number(&sent.port) {
        Ok(port) => port,
        Err(why) => return Ok(Err(why)),
    };
    if sent.action == ShareLevel::Owner.as_str() {
        if let Some(port) = allowed(port) {
            let store = &state.store;
            store.delete_share(workspace.id, &sent.agent, port).await?;
        }
        state.changed();
        return Ok(Ok(format!("Port {port} is private now.")));
    }
    let request = ShareRequest {
        agent_name: sent.agent.clone(),
        port,
        share_level: sent.action.clone(),
        protocol: sent.protocol.clone(),
    };
    let exists = |name: &str| workspace.agents.iter().any(|agent| agent.name == name);
    let share = match request.check(workspace.max_share_level(), exists) {
        Ok(share) => share,
        Err(why) => return Ok(Err(sentence(&why.to_string()))),
    };
    state.store.put_share(workspace.id, &share).await?;
    state.changed();
    let who = who(share.level);
    Ok(Ok(format!("Port {port} is shared. {who} can open it.")))
}

fn number(text: &str) -> Result<i64, String> {
    let wrong = |_| "Write the port as a number from 9 to 65535.".to_owned();
    text.trim().parse().map_err(wrong)
}

fn sentence(text: &str) -> String {
    let mut letters = text.chars();
    let first = letters.next().map(|c| c.to_uppercase().to_string());
    format!("{}{}.", first.unwrap_or_default(), letters.as_str())
}
