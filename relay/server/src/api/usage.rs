//! What apps were used for, and who opened what (coder_facts §2.13).

use axum::extract::{Path, RawQuery, State};
use axum::routing::get;
use axum::{Json, Router};
use chrono::{DateTime, TimeDelta, Utc};
use relay_wire::rest;
use serde::Serialize;
use uuid::Uuid;

use super::auth::{Caller, parameter};
use super::users::named;
use super::workspaces::reachable;
use super::{Refusal, views};
use crate::state::Shared;
use crate::store::{AppUse, Connection, ConnectionFilter};
use crate::usage::log::Kind;

/// Longest page of the log, and how long it is when nothing else is asked for.
const PAGE: usize = 1000;
const SHORT_PAGE: usize = 25;
/// How far statistics look back.
const SINCE: TimeDelta = TimeDelta::days(30);

pub(super) fn routes() -> Router<Shared> {
    Router::new()
        .route("/connectionlog", get(connection_log))
        .route("/workspaces/{id}/app-stats", get(app_stats))
}

/// Answer to `GET /api/v2/workspaces/{id}/app-stats`.
#[derive(Serialize)]
struct AppStats {
    start_time: DateTime<Utc>,
    end_time: DateTime<Utc>,
    apps: Vec<AppStat>,
}

#[derive(Serialize)]
struct AppStat {
    agent_name: String,
    access_method: String,
    slug_or_port: String,
    requests: i64,
    seconds: i64,
    active_users: i64,
    last_used_at: DateTime<Utc>,
}

async fn app_stats(
    State(state): State<Shared>,
    caller: Caller,
    Path(id): Path<String>,
) -> Result<Json<AppStats>, Refusal> {
    let workspace = reachable(&state, &caller, &id).await?;
    let end_time = crate::store::now();
    let start_time = end_time - SINCE;
    let found = state.store.app_use(workspace.id, start_time).await?;
    let stat = |found: AppUse| AppStat {
        agent_name: found.agent_name,
        access_method: found.access_method,
        slug_or_port: found.slug_or_port,
        requests: found.requests,
        seconds: found.seconds,
        active_users: found.users,
        last_used_at: found.last_used_at,
    };
    Ok(Json(AppStats {
        start_time,
        end_time,
        apps: found.into_iter().map(stat).collect(),
    }))
}

/// Answer to `GET /api/v2/connectionlog`.
#[derive(Serialize)]
struct ConnectionLog {
    connection_logs: Vec<Entry>,
    count: i64,
}

#[derive(Serialize)]
struct Entry {
    id: Uuid,
    connect_time: DateTime<Utc>,
    organization: Organization,
    workspace_owner_id: Uuid,
    workspace_owner_username: String,
    workspace_id: Uuid,
    workspace_name: String,
    agent_name: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    ip: Option<std::net::IpAddr>,
    r#type: &'static str,
    web_info: WebInfo,
}

/// The one organization that there is.
#[derive(Default, Serialize)]
struct Organization {
    id: Uuid,
    name: &'static str,
    display_name: &'static str,
    icon: &'static str,
}

#[derive(Serialize)]
struct WebInfo {
    user_agent: String,
    user: Option<rest::User>,
    slug_or_port: String,
    status_code: u16,
}

/// The connections to the caller's own workspaces; an administrator sees all.
async fn connection_log(
    State(state): State<Shared>,
    caller: Caller,
    RawQuery(query): RawQuery,
) -> Result<Json<ConnectionLog>, Refusal> {
    let query = query.unwrap_or_default();
    let number = |name| parameter(&query, name).and_then(|text| text.parse::<usize>().ok());
    let search = parameter(&query, "q").unwrap_or_default();
    let Some(mut filter) = filter(&state, &caller, &search).await? else {
        return Ok(Json(ConnectionLog {
            connection_logs: Vec::new(),
            count: 0,
        }));
    };
    let limit = number("limit").filter(|limit| *limit > 0);
    filter.limit = limit.unwrap_or(SHORT_PAGE).min(PAGE);
    filter.offset = number("offset").unwrap_or(0);
    let (found, count) = state.store.connections(&filter).await?;
    Ok(Json(ConnectionLog {
        connection_logs: found.into_iter().map(entry).collect(),
        count,
    }))
}

fn entry(found: Connection) -> Entry {
    Entry {
        id: found.id,
        connect_time: found.time,
        organization: Organization::default(),
        workspace_owner_id: found.owner_id,
        workspace_owner_username: found.owner_name,
        workspace_id: found.workspace_id,
        workspace_name: found.workspace_name,
        agent_name: found.agent_name,
        ip: found.ip,
        r#type: found.kind.as_str(),
        web_info: WebInfo {
            user_agent: found.user_agent,
            user: found.user.as_ref().map(views::user),
            slug_or_port: found.slug_or_port,
            status_code: found.status,
        },
    }
}

/// Reads a search such as `workspace_owner:me type:tunnel`; `None` where it can find nothing.
async fn filter(
    state: &Shared,
    caller: &Caller,
    search: &str,
) -> Result<Option<ConnectionFilter>, Refusal> {
    let mut filter = ConnectionFilter::default();
    let own = (!caller.user.is_admin).then_some(caller.user.id);
    for word in search.split_whitespace() {
        let (key, value) = word.split_once(':').unwrap_or((word, ""));
        let value = value.trim_matches('"');
        let wrong = |detail: &str| {
            let message = format!("Query parameter {key:?} is not known or has no such value.");
            Refusal::bad(message).field("q", detail)
        };
        match key {
            "workspace_owner" => match named(state, caller, value).await {
                Ok(user) => filter.owner = Some(user.id),
                Err(_) => return Ok(None),
            },
            "workspace_id" => {
                let id = Uuid::parse_str(value).map_err(|_| wrong("workspace_id is no UUID"))?;
                filter.workspace = Some(id);
            }
            "username" => match state.store.user_by_name(value).await? {
                Some(user) => filter.user = Some(user.id),
                None if value == "me" => filter.user = Some(caller.user.id),
                None => return Ok(None),
            },
            "type" => {
                let kind = Kind::parse(value);
                let kinds = "type is port_forwarding, workspace_app or tunnel";
                filter.kind = Some(kind.ok_or_else(|| wrong(kinds))?);
            }
            _ => {
                let keys = "use workspace_owner:, workspace_id:, username: or type:";
                return Err(wrong(keys));
            }
        }
    }
    if let Some(own) = own {
        if filter.owner.is_some_and(|owner| owner != own) {
            return Ok(None);
        }
        filter.owner = Some(own);
    }
    Ok(Some(filter))
}
