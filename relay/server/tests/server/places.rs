//! Where the server says that apps are.

use serde_json::{Value, json};

use crate::support::Plane;

#[tokio::test]
async fn the_wildcard_is_told_to_users_with_the_servers_port() {
    let plane = Plane::start().await;
    let get = async |path: &str, token: &str| plane.json("GET", path, token, &Value::Null).await;
    let wildcard = format!("*.localhost:{}", plane.address().port());
    let (status, host) = get("applications/host", &plane.session).await;
    assert_eq!((status, &host), (200, &json!({ "host": wildcard })));
    let (status, regions) = get("regions", &plane.session).await;
    assert_eq!(status, 200);
    let region = &regions["regions"][0];
    assert_eq!(region["wildcard_hostname"], json!(wildcard));
    assert_eq!(region["healthy"], true);
    let url = region["path_app_url"].as_str().unwrap();
    assert_eq!(format!("{url}/"), plane.url().as_str());
    assert_eq!(get("applications/host", "").await.0, 401);
    assert_eq!(get("regions", "").await.0, 401);
}
