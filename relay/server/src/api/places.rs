//! Where apps are served (coder_facts §2.1).

use axum::extract::State;
use axum::routing::get;
use axum::{Json, Router};
use relay_wire::rest::{AppHost, Region, Regions};
use uuid::Uuid;

use super::auth::Caller;
use crate::state::Shared;

pub(super) fn routes() -> Router<Shared> {
    Router::new()
        .route("/applications/host", get(host))
        .route("/regions", get(regions))
}

async fn host(State(state): State<Shared>, _caller: Caller) -> Json<AppHost> {
    let host = wildcard(&state);
    Json(AppHost { host })
}

/// This server is the only place there is.
async fn regions(State(state): State<Shared>, _caller: Caller) -> Json<Regions> {
    let region = Region {
        id: Uuid::parse_str(&state.deployment_id).unwrap_or_default(),
        name: "primary".to_owned(),
        display_name: "Default".to_owned(),
        icon_url: String::new(),
        healthy: true,
        path_app_url: state.access_url.as_str().trim_end_matches('/').to_owned(),
        wildcard_hostname: wildcard(&state),
    };
    let regions = vec![region];
    Json(Regions { regions })
}

/// The wildcard as browsers are told; empty without one.
fn wildcard(state: &Shared) -> String {
    let pattern = state.apps.pattern.as_ref();
    pattern.map_or_else(String::new, |pattern| pattern.advertised(&state.access_url))
}
