//! Control sessions of clients and agents.

use relay_control::rpc::{Mux, Receiver, RpcError, Sender, UNIMPLEMENTED};
use relay_wire::addr::{agent_address, prefix_text};
use relay_wire::proto::tailnet::coordinate_request::{
    Disconnect, ReadyForHandshake, Tunnel, UpdateSelf,
};
use relay_wire::proto::tailnet::coordinate_response::{PeerUpdate, peer_update::Kind};
use relay_wire::proto::tailnet::{
    self, CoordinateRequest, CoordinateResponse, Node, RefreshResumeTokenRequest,
    RefreshResumeTokenResponse, StreamDerpMapsRequest,
};
use relay_wire::proto::{agent, id_bytes, parse_id};
use relay_wire::rest::{AgentStatus, LifecycleState};
use uuid::Uuid;

use crate::support::{PATIENCE, Plane, soon};

async fn agent_session(plane: &Plane) -> Mux {
    let cookie = format!("coder_session_token={}", plane.workspace.agents[0].token);
    let path = "workspaceagents/me/rpc?version=2.10&role=agent";
    plane.control(path, &[("Cookie", &cookie)]).await.unwrap()
}

async fn client_session(plane: &Plane, more: &str) -> Result<Mux, u16> {
    let agent = plane.workspace.agents[0].id;
    let path = format!("workspaceagents/{agent}/coordinate?version=2.0{more}");
    let header = [("Coder-Session-Token", plane.session.as_str())];
    plane.control(&path, &header).await
}

fn node(id: Uuid) -> CoordinateRequest {
    let address = prefix_text(agent_address(&id));
    let node = Node {
        key: vec![1; 34].into(),
        preferred_derp: 999,
        addresses: vec![address.clone()],
        allowed_ips: vec![address],
        ..Node::default()
    };
    CoordinateRequest {
        update_self: Some(UpdateSelf { node: Some(node) }),
        ..CoordinateRequest::default()
    }
}

fn tunnel(to: Uuid) -> CoordinateRequest {
    CoordinateRequest {
        add_tunnel: Some(Tunnel { id: id_bytes(to) }),
        ..CoordinateRequest::default()
    }
}

/// The next update; everything else is a failure.
async fn update(receiver: &mut Receiver) -> PeerUpdate {
    let response: CoordinateResponse = soon(receiver.message()).await.unwrap().unwrap();
    assert_eq!(response.error, "");
    assert_eq!(response.peer_updates.len(), 1, "{response:?}");
    response.peer_updates[0].clone()
}

/// A client with a tunnel to the agent, and its peer id as the agent sees it.
async fn join(client: &Mux, agent: Uuid, agent_side: &mut Receiver) -> (Uuid, Sender, Receiver) {
    let call = client.bidirectional(tailnet::COORDINATE).await.unwrap();
    let (mut sender, receiver) = call;
    sender.send(&tunnel(agent)).await.unwrap();
    sender.send(&node(Uuid::from_u128(7))).await.unwrap();
    let seen = update(agent_side).await;
    assert_eq!(seen.kind(), Kind::Node);
    (parse_id(&seen.id).unwrap(), sender, receiver)
}

#[tokio::test]
async fn a_client_and_an_agent_find_each_other() {
    let plane = Plane::start().await;
    let id = plane.workspace.agents[0].id;
    let agent = agent_session(&plane).await;
    let (mut to_server, mut from_server) = agent.bidirectional(tailnet::COORDINATE).await.unwrap();
    to_server.send(&node(id)).await.unwrap();

    let client = client_session(&plane, "").await.unwrap();
    let maps = client
        .server_stream(tailnet::STREAM_DERP_MAPS, &StreamDerpMapsRequest {})
        .await;
    let mut maps = maps.unwrap();
    let map: tailnet::DerpMap = soon(maps.message()).await.unwrap().unwrap();
    assert!(map.home_params.is_some() && map.regions.contains_key(&999));

    let (peer, mut sender, mut receiver) = join(&client, id, &mut from_server).await;
    let seen = update(&mut receiver).await;
    assert_eq!((seen.kind(), parse_id(&seen.id)), (Kind::Node, Some(id)));
    let ready = CoordinateRequest {
        ready_for_handshake: vec![ReadyForHandshake { id: id_bytes(peer) }],
        ..CoordinateRequest::default()
    };
    to_server.send(&ready).await.unwrap();
    assert_eq!(update(&mut receiver).await.kind(), Kind::ReadyForHandshake);

    let bye = CoordinateRequest {
        disconnect: Some(Disconnect {}),
        ..CoordinateRequest::default()
    };
    sender.send(&bye).await.unwrap();
    let end: Option<CoordinateResponse> = soon(receiver.message()).await.unwrap();
    assert!(end.is_none());
    let seen = update(&mut from_server).await;
    assert_eq!(seen.kind(), Kind::Disconnected);
    assert_eq!(seen.reason, "graceful disconnect");
    // The map's stream stays open, or clients would connect anew.
    let wait = std::time::Duration::from_millis(100);
    let more = tokio::time::timeout(wait, maps.message::<tailnet::DerpMap>()).await;
    assert!(more.is_err());
    plane.server.shutdown().await;
    soon(client.closed()).await;
}

#[tokio::test]
async fn an_agent_gets_its_answers_and_is_shown_as_it_is() {
    let plane = Plane::start().await;
    let id = plane.workspace.agents[0].id;
    let client = plane.client(&plane.session);
    let session = agent_session(&plane).await;
    let empty = tailnet::Empty::default();
    let manifest: agent::Manifest = session.unary(agent::GET_MANIFEST, &empty).await.unwrap();
    assert_eq!(parse_id(&manifest.agent_id), Some(id));
    assert_eq!(manifest.workspace_name, "dev");
    assert!(manifest.derp_map.unwrap().home_params.is_some());
    let startup = agent::UpdateStartupRequest {
        startup: Some(agent::Startup {
            version: "v0.1.0".into(),
            ..Default::default()
        }),
    };
    let _: agent::Startup = session
        .unary(agent::UPDATE_STARTUP, &startup)
        .await
        .unwrap();
    let lifecycle = |state: i32| agent::UpdateLifecycleRequest {
        lifecycle: Some(agent::Lifecycle {
            state,
            changed_at: None,
        }),
    };
    let path = agent::UPDATE_LIFECYCLE;
    let _: agent::Lifecycle = session.unary(path, &lifecycle(5)).await.unwrap();
    let bad: Result<agent::Lifecycle, _> = session.unary(path, &lifecycle(77)).await;
    assert!(matches!(bad, Err(RpcError::Refused { .. })), "{bad:?}");
    let stats: agent::UpdateStatsResponse =
        session.unary(agent::UPDATE_STATS, &empty).await.unwrap();
    assert!(stats.report_interval.unwrap().seconds > 0);
    for path in [
        tailnet::REFRESH_RESUME_TOKEN,
        "/coder.agent.v2.Agent/PushContextState",
        "/nonsense",
    ] {
        let refused: Result<tailnet::Empty, _> = session.unary(path, &empty).await;
        let code = match refused {
            Err(RpcError::Refused { code, .. }) => code,
            other => panic!("{path}: {other:?}"),
        };
        assert_eq!(code, UNIMPLEMENTED, "{path}");
    }
    let shown = client.agent(id).await.unwrap();
    assert_eq!(shown.status, AgentStatus::Connected);
    assert_eq!(shown.lifecycle_state, LifecycleState::Ready);
    assert_eq!(shown.version, "v0.1.0");
    assert!(shown.first_connected_at.is_some() && shown.ready_at.is_some());
    session.shutdown();
    let gone = async {
        while client.agent(id).await.unwrap().status != AgentStatus::Disconnected {
            tokio::time::sleep(std::time::Duration::from_millis(10)).await;
        }
    };
    soon(gone).await;
}

#[tokio::test]
async fn a_bad_request_ends_its_own_stream_only() {
    let plane = Plane::start().await;
    let agent = agent_session(&plane).await;
    let nothing = CoordinateRequest {
        update_self: Some(UpdateSelf { node: None }),
        ..CoordinateRequest::default()
    };
    let (mut sender, mut receiver) = agent.bidirectional(tailnet::COORDINATE).await.unwrap();
    sender.send(&nothing).await.unwrap();
    let answer: CoordinateResponse = soon(receiver.message()).await.unwrap().unwrap();
    assert!(answer.error.starts_with("authorization: "), "{answer:?}");
    let end: Option<CoordinateResponse> = soon(receiver.message()).await.unwrap();
    assert!(end.is_none());
    // No protobuf at all: a field that claims to be longer than the message.
    let path = agent::UPDATE_STARTUP;
    let junk = tailnet::Workspace {
        id: vec![0xff; 40].into(),
        ..Default::default()
    };
    let refused: Result<agent::Startup, _> = agent.unary(path, &junk).await;
    assert!(refused.is_err());
    let empty = tailnet::Empty::default();
    let manifest: agent::Manifest = agent.unary(agent::GET_MANIFEST, &empty).await.unwrap();
    assert_eq!(manifest.agent_name, "main");
}

#[tokio::test]
async fn a_resume_token_keeps_the_peer_id_over_a_restart() {
    let plane = Plane::start().await;
    let id = plane.workspace.agents[0].id;
    let agent = agent_session(&plane).await;
    let (mut sender, mut receiver) = agent.bidirectional(tailnet::COORDINATE).await.unwrap();
    sender.send(&node(id)).await.unwrap();
    let client = client_session(&plane, "").await.unwrap();
    let path = tailnet::REFRESH_RESUME_TOKEN;
    let request = RefreshResumeTokenRequest {};
    let answer: RefreshResumeTokenResponse = client.unary(path, &request).await.unwrap();
    assert_eq!(answer.refresh_in.unwrap().seconds, 12 * 3600);
    let (before, ..) = join(&client, id, &mut receiver).await;

    let plane = plane.restart().await;
    let agent = agent_session(&plane).await;
    let (mut sender, mut receiver) = agent.bidirectional(tailnet::COORDINATE).await.unwrap();
    sender.send(&node(id)).await.unwrap();
    let resume = format!("&resume_token={}", answer.token);
    let client = client_session(&plane, &resume).await.unwrap();
    let (after, ..) = join(&client, id, &mut receiver).await;
    assert_eq!(before, after);
    let refused = client_session(&plane, "&resume_token=nonsense").await;
    assert_eq!(refused.unwrap_err(), 401);
}

#[tokio::test]
async fn versions_and_origins_are_checked_before_the_upgrade() {
    let plane = Plane::start().await;
    let agent = plane.workspace.agents[0].id;
    let token = ("Coder-Session-Token", plane.session.as_str());
    let path = |version: &str| format!("workspaceagents/{agent}/coordinate{version}");
    for (version, headers, status) in [
        ("", vec![token], 400),
        ("?version=1.0", vec![token], 400),
        ("?version=2.99", vec![token], 400),
        ("?version=2.0", vec![], 401),
        (
            "?version=2.0",
            vec![token, ("Origin", "https://evil.example")],
            403,
        ),
    ] {
        let refused = plane.control(&path(version), &headers).await;
        assert_eq!(refused.unwrap_err(), status, "{version} {headers:?}");
    }
    let origin = format!("http://{}", plane.address());
    let headers = [token, ("Origin", origin.as_str())];
    assert!(plane.control(&path("?version=2.0"), &headers).await.is_ok());
    let wrong = [(
        "Coder-Session-Token",
        "00000000-0000-4000-8000-000000000000",
    )];
    let refused = plane.control("workspaceagents/me/rpc", &wrong).await;
    assert_eq!(refused.unwrap_err(), 401);
}

#[tokio::test]
async fn sessions_of_a_rebuilt_workspace_end() {
    let plane = Plane::start().await;
    let agent = agent_session(&plane).await;
    let client = client_session(&plane, "").await.unwrap();
    // As another process does it, on the same database.
    let store = relay_server::Store::open(&plane.data.path().join("data")).await;
    let store = store.unwrap();
    let found = store.workspace(plane.workspace.id).await.unwrap().unwrap();
    store.rebuild_workspace(&found).await.unwrap();
    let both = async {
        agent.closed().await;
        client.closed().await;
    };
    tokio::time::timeout(PATIENCE, both).await.unwrap();
    assert_eq!(client_session(&plane, "").await.unwrap_err(), 404);
}
