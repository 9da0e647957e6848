//! What agents are told of their apps and tell about them, and what listens in a workspace.

use std::time::Duration;

use relay_control::rpc::{Mux, RpcError};
use relay_server::template;
use relay_wire::proto::agent::batch_update_app_health_request::HealthUpdate;
use relay_wire::proto::agent::{
    self, AppHealth, BatchUpdateAppHealthRequest, BatchUpdateAppHealthResponse, GetManifestRequest,
    Manifest,
};
use relay_wire::proto::{id_bytes, parse_id};
use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use uuid::Uuid;

use crate::support::{PATIENCE, Plane, soon};

const CHECKED: &str = r#"
resource "coder_agent" "main" {}
resource "coder_app" "site" {
  agent_id = coder_agent.main.id
  slug     = "site"
  url      = "http://localhost:3000"
  subdomain = true
  share    = "public"
  healthcheck {
    url       = "http://localhost:3000/healthz"
    interval  = 5
    threshold = 6
  }
}
resource "coder_app" "plain" {
  agent_id = coder_agent.main.id
  slug     = "plain"
  url      = "http://localhost:4000"
  order    = 1
}
"#;

/// A workspace with the apps above: its id, and a session of its agent.
async fn with_apps(plane: &Plane) -> (Uuid, Mux) {
    let store = plane.server.store();
    let definition = template::parse(CHECKED).unwrap();
    let template = store.add_template("web", &definition).await.unwrap();
    let alice = store.user_by_name("alice").await.unwrap().unwrap();
    let made = store
        .create_workspace_from(alice.id, "web", &template, &[])
        .await
        .unwrap();
    let cookie = format!("coder_session_token={}", made.agents[0].token);
    let path = "workspaceagents/me/rpc?version=2.0&role=agent";
    let session = plane.control(path, &[("Cookie", &cookie)]).await.unwrap();
    (made.id, session)
}

async fn manifest(session: &Mux) -> Manifest {
    let request = GetManifestRequest {};
    soon(session.unary(agent::GET_MANIFEST, &request))
        .await
        .unwrap()
}

async fn tell(session: &Mux, updates: &[(Uuid, i32)]) -> Result<(), RpcError> {
    let update = |(id, health): &(Uuid, i32)| HealthUpdate {
        id: id_bytes(*id),
        health: *health,
    };
    let request = BatchUpdateAppHealthRequest {
        updates: updates.iter().map(update).collect(),
    };
    let answer = session.unary(agent::BATCH_UPDATE_APP_HEALTHS, &request);
    soon(answer).await.map(|BatchUpdateAppHealthResponse {}| ())
}

/// The health of the workspace's apps, as the API shows it.
async fn shown(plane: &Plane, workspace: Uuid) -> Vec<String> {
    let path = format!("workspaces/{workspace}");
    let (status, body) = plane.json("GET", &path, &plane.session, &Value::Null).await;
    assert_eq!(status, 200);
    let apps = &body["latest_build"]["resources"][0]["agents"][0]["apps"];
    let health = |app: &Value| app["health"].as_str().unwrap().to_owned();
    apps.as_array().unwrap().iter().map(health).collect()
}

#[tokio::test]
async fn an_agent_is_told_its_apps_and_tells_how_they_are() {
    let plane = Plane::start().await;
    let (workspace, session) = with_apps(&plane).await;
    let Manifest {
        apps,
        vs_code_port_proxy_uri: template,
        ..
    } = manifest(&session).await;
    let port = plane.address().port();
    let ports = format!("http://{{{{port}}}}--main--web--alice.localhost:{port}");
    assert_eq!(template, ports);
    let [site, plain] = &apps[..] else {
        panic!("{apps:?}")
    };
    let check = site.healthcheck.clone().unwrap();
    assert_eq!(check.url, "http://localhost:3000/healthz");
    assert_eq!(check.interval.unwrap().to_std(), Duration::from_secs(5));
    assert_eq!(check.threshold, 6);
    assert_eq!(
        (site.health(), plain.health()),
        (AppHealth::Initializing, AppHealth::Disabled)
    );
    assert!(plain.healthcheck.is_none());
    let names = (site.subdomain_name.as_str(), plain.subdomain_name.as_str());
    assert_eq!(names, ("site--web--alice", ""));

    let (site, plain) = (parse_id(&site.id).unwrap(), parse_id(&plain.id).unwrap());
    let healthy = i32::from(AppHealth::Healthy);
    let foreign = Uuid::new_v4();
    let updates = [(site, healthy), (plain, healthy), (foreign, healthy)];
    tell(&session, &updates).await.unwrap();
    assert_eq!(shown(&plane, workspace).await, ["healthy", "disabled"]);
    assert_eq!(
        manifest(&session).await.apps[0].health(),
        AppHealth::Healthy
    );

    for nonsense in [0, 5, -1] {
        let told = tell(&session, &[(site, nonsense)]).await;
        assert!(matches!(told, Err(RpcError::Refused { .. })), "{nonsense}");
    }
    let many = vec![(site, healthy); 2000];
    assert!(tell(&session, &many).await.is_err());
    let unhealthy = i32::from(AppHealth::Unhealthy);
    tell(&session, &[(site, unhealthy)]).await.unwrap();
    assert_eq!(shown(&plane, workspace).await, ["unhealthy", "disabled"]);
}

#[tokio::test]
async fn a_change_of_health_is_news_of_the_workspace() {
    let plane = Plane::start().await;
    let (workspace, session) = with_apps(&plane).await;
    let site = parse_id(&manifest(&session).await.apps[0].id).unwrap();
    let mut watch = TcpStream::connect(plane.address()).await.unwrap();
    let request = format!(
        "GET /api/v2/workspaces/{workspace}/watch HTTP/1.1\r\nHost: relay\r\n\
         Coder-Session-Token: {}\r\n\r\n",
        plane.session
    );
    watch.write_all(request.as_bytes()).await.unwrap();
    let mut text = String::new();
    let mut until = async |part: &str| {
        let mut buffer = [0; 8192];
        while !text.contains(part) {
            let length = soon(watch.read(&mut buffer)).await.unwrap();
            assert!(length > 0, "{text}");
            text.push_str(&String::from_utf8_lossy(&buffer[..length]));
        }
    };
    until(r#""health":"initializing""#).await;
    tell(&session, &[(site, AppHealth::Healthy.into())])
        .await
        .unwrap();
    until(r#""health":"healthy""#).await;
}

#[tokio::test]
async fn listening_ports_need_a_connected_agent_and_its_owner() {
    let plane = Plane::start().await;
    let agent = plane.workspace.agents[0].id;
    let path = format!("workspaceagents/{agent}/listening-ports");
    let get = async |token: &str| plane.json("GET", &path, token, &Value::Null).await;
    let (status, body) = get(&plane.session).await;
    assert_eq!(status, 400);
    let text = body["message"].as_str().unwrap();
    assert!(text.contains("connecting"), "{text}");

    let token = plane.session_of("mallory", false).await;
    assert_eq!(get(&token).await.0, 404);

    let cookie = format!("coder_session_token={}", plane.workspace.agents[0].token);
    let rpc = "workspaceagents/me/rpc?version=2.0";
    let session = plane.control(rpc, &[("Cookie", &cookie)]).await.unwrap();
    // This server was not given what it needs to open tunnels, and says so.
    let answer = tokio::time::timeout(PATIENCE, async {
        loop {
            match get(&plane.session).await {
                (400, _) => tokio::time::sleep(Duration::from_millis(5)).await,
                answer => return answer,
            }
        }
    });
    let (status, body) = answer.await.unwrap();
    assert_eq!(status, 500);
    let text = body["message"].as_str().unwrap();
    assert!(text.contains("cannot open tunnels"), "{text}");
    drop(session);
}
