//! Apps of agents: what a template says of them, and how they are.

use serde::{Deserialize, Serialize};
use sqlx::Row;
use sqlx::sqlite::SqliteRow;
use uuid::Uuid;

use super::{Store, uuid};
use crate::apps::access::ShareLevel;
use crate::error::{Error, Result};

/// An app of an agent, or of a template's agents.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct App {
    /// Its id, new in each build; nil in a template.
    pub id: Uuid,
    /// The agent's name.
    pub agent: String,
    /// Its name in addresses, unique in the template.
    pub slug: String,
    /// Its name for people.
    pub display_name: String,
    /// URL or path of a picture; may be empty.
    pub icon: String,
    /// Where it is, as seen from the workspace; an external one's is the browser's.
    pub url: String,
    /// Command for a terminal instead; may be empty.
    pub command: String,
    /// A plain link that is not proxied.
    pub external: bool,
    /// Whether it has a host name of its own.
    pub subdomain: bool,
    /// Who may open it.
    pub share: ShareLevel,
    /// How its health is watched.
    pub healthcheck: Option<HealthCheck>,
    /// Place among the apps, low first.
    pub order: i64,
    /// Heading to show it under; may be empty.
    pub group: String,
    /// Not shown.
    pub hidden: bool,
    /// Markdown to show beside it; may be empty.
    pub tooltip: String,
    /// Where the browser opens it.
    pub open_in: OpenIn,
}

/// How the health of an app is watched.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct HealthCheck {
    /// What the agent asks.
    pub url: String,
    /// Seconds between two questions.
    pub interval: u32,
    /// Failures in a row that are borne.
    pub threshold: u32,
}

/// Where the browser opens an app.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum OpenIn {
    /// A window without the browser's controls.
    #[default]
    SlimWindow,
    /// A tab.
    Tab,
}

impl OpenIn {
    /// The text in templates and answers.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::SlimWindow => "slim-window",
            Self::Tab => "tab",
        }
    }
}

/// What is known of an app's health.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AppHealth {
    /// It has no check.
    Disabled,
    /// Not known yet.
    Initializing,
    /// It answers.
    Healthy,
    /// It does not.
    Unhealthy,
}

impl AppHealth {
    const ALL: [Self; 4] = [
        Self::Disabled,
        Self::Initializing,
        Self::Healthy,
        Self::Unhealthy,
    ];

    /// The text in the database and in answers.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Disabled => "disabled",
            Self::Initializing => "initializing",
            Self::Healthy => "healthy",
            Self::Unhealthy => "unhealthy",
        }
    }

    fn parse(text: &str) -> Result<Self> {
        let found = Self::ALL.into_iter().find(|health| health.as_str() == text);
        found.ok_or(Error::Corrupt { what: "app health" })
    }

    /// The state of that number in the agent protocol.
    pub fn from_number(number: i32) -> Option<Self> {
        let index = usize::try_from(number.checked_sub(1)?).ok()?;
        Self::ALL.get(index).copied()
    }

    /// Its number in the agent protocol.
    pub fn number(self) -> i32 {
        match self {
            Self::Disabled => 1,
            Self::Initializing => 2,
            Self::Healthy => 3,
            Self::Unhealthy => 4,
        }
    }
}

fn app(row: &SqliteRow) -> Result<(App, AppHealth)> {
    let definition: String = row.try_get("definition")?;
    let stored: App =
        serde_json::from_str(&definition).map_err(|_| Error::Corrupt { what: "app" })?;
    let health = AppHealth::parse(row.try_get("health")?)?;
    let id = uuid(row, "app_id")?;
    Ok((App { id, ..stored }, health))
}

/// The place of an app among others.
fn place((app, _): &(App, AppHealth)) -> (i64, String) {
    (app.order, app.slug.clone())
}

impl Store {
    /// The apps of an agent with their health, in the order in which they are shown.
    pub async fn apps_of_agent(&self, agent_id: Uuid) -> Result<Vec<(App, AppHealth)>> {
        let rows =
            sqlx::query("SELECT id AS app_id, health, definition FROM apps WHERE agent_id = $1")
                .bind(agent_id.to_string())
                .fetch_all(&self.pool)
                .await?;
        let mut apps: Vec<_> = rows.iter().map(app).collect::<Result<_>>()?;
        apps.sort_by_cached_key(place);
        Ok(apps)
    }

    /// The apps of all agents of a workspace, by the agents' ids.
    pub(super) async fn apps_of_workspace(
        &self,
        workspace_id: Uuid,
    ) -> Result<Vec<(Uuid, (App, AppHealth))>> {
        let rows = sqlx::query(
            "SELECT apps.id AS app_id, apps.health, apps.definition, apps.agent_id FROM apps \
             JOIN agents ON agents.id = apps.agent_id WHERE agents.workspace_id = $1",
        )
        .bind(workspace_id.to_string())
        .fetch_all(&self.pool)
        .await?;
        let mut apps: Vec<_> = rows
            .iter()
            .map(|row| Ok((uuid(row, "agent_id")?, app(row)?)))
            .collect::<Result<_>>()?;
        apps.sort_by_cached_key(|(_, app)| place(app));
        Ok(apps)
    }

    /// The app of that slug in a workspace, with the id of its agent.
    pub async fn app_by_slug(&self, workspace_id: Uuid, slug: &str) -> Result<Option<(App, Uuid)>> {
        let row = sqlx::query(
            "SELECT apps.id AS app_id, apps.health, apps.definition, apps.agent_id FROM apps \
             JOIN agents ON agents.id = apps.agent_id \
             WHERE agents.workspace_id = $1 AND apps.slug = $2",
        )
        .bind(workspace_id.to_string())
        .bind(slug)
        .fetch_optional(&self.pool)
        .await?;
        let Some(row) = row else { return Ok(None) };
        Ok(Some((app(&row)?.0, uuid(&row, "agent_id")?)))
    }

    /// Notes what an agent found out about its apps; true when something is different now. Apps of
    /// other agents and those without a check are left as they are.
    pub async fn set_app_health(
        &self,
        agent_id: Uuid,
        states: &[(Uuid, AppHealth)],
    ) -> Result<bool> {
        let mut transaction = self.begin().await?;
        let mut changed = 0;
        for (id, health) in states {
            let done = sqlx::query(
                "UPDATE apps SET health = $3 WHERE id = $1 AND agent_id = $2 \
                 AND health <> $3 AND health <> 'disabled'",
            )
            .bind(id.to_string())
            .bind(agent_id.to_string())
            .bind(health.as_str())
            .execute(&mut *transaction)
            .await?;
            changed += done.rows_affected();
        }
        transaction.commit().await?;
        Ok(changed > 0)
    }
}

pub(super) async fn insert_apps(
    transaction: &mut sqlx::Transaction<'_, sqlx::Sqlite>,
    agent_id: Uuid,
    apps: impl IntoIterator<Item = &App>,
) -> Result<()> {
    for app in apps {
        let health = match app.healthcheck {
            Some(_) => AppHealth::Initializing,
            None => AppHealth::Disabled,
        };
        let definition =
            serde_json::to_string(app).map_err(|_| Error::Corrupt { what: "template" })?;
        sqlx::query(
            "INSERT INTO apps (id, agent_id, slug, health, definition) \
             VALUES ($1, $2, $3, $4, $5)",
        )
        .bind(Uuid::new_v4().to_string())
        .bind(agent_id.to_string())
        .bind(&app.slug)
        .bind(health.as_str())
        .bind(definition)
        .execute(&mut **transaction)
        .await?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::Definition;

    async fn with_apps(apps: Vec<App>) -> (Store, Uuid, Uuid) {
        let store = Store::in_memory().await.unwrap();
        let alice = store
            .create_user("alice", "a@b.test", "password", false)
            .await
            .unwrap();
        let definition = Definition {
            agents: vec!["main".into()],
            apps,
        };
        let template = store.add_template("web", &definition).await.unwrap();
        let made = store
            .create_workspace_from(alice.id, "dev", &template, &[])
            .await
            .unwrap();
        (store, made.id, made.agents[0].id)
    }

    fn app(slug: &str, checked: bool) -> App {
        App {
            agent: "main".into(),
            slug: slug.into(),
            healthcheck: checked.then(|| HealthCheck {
                url: "http://localhost/".into(),
                interval: 5,
                threshold: 3,
            }),
            ..App::default()
        }
    }

    #[tokio::test]
    async fn health_changes_only_for_checked_apps_of_the_agent_that_tells_it() {
        let (store, _, agent) = with_apps(vec![app("a", true), app("b", false)]).await;
        let apps = store.apps_of_agent(agent).await.unwrap();
        let states: Vec<_> = apps.iter().map(|(_, health)| *health).collect();
        assert_eq!(states, [AppHealth::Initializing, AppHealth::Disabled]);
        let all: Vec<_> = apps
            .iter()
            .map(|(app, _)| (app.id, AppHealth::Healthy))
            .collect();
        assert!(!store.set_app_health(Uuid::new_v4(), &all).await.unwrap());
        let before = store.revision().await.unwrap();
        assert!(store.set_app_health(agent, &all).await.unwrap());
        assert!(!store.set_app_health(agent, &all).await.unwrap());
        assert_eq!(store.revision().await.unwrap(), before);
        let apps = store.apps_of_agent(agent).await.unwrap();
        let states: Vec<_> = apps.iter().map(|(_, health)| *health).collect();
        assert_eq!(states, [AppHealth::Healthy, AppHealth::Disabled]);
    }

    #[tokio::test]
    async fn apps_are_in_order_and_found_by_slug() {
        let first = App {
            order: -1,
            ..app("z", false)
        };
        let (store, workspace, agent) = with_apps(vec![app("a", false), first]).await;
        let apps = store.apps_of_agent(agent).await.unwrap();
        let slugs: Vec<_> = apps.iter().map(|(app, _)| app.slug.as_str()).collect();
        assert_eq!(slugs, ["z", "a"]);
        let (found, of) = store.app_by_slug(workspace, "a").await.unwrap().unwrap();
        assert_eq!((found.slug.as_str(), of), ("a", agent));
        assert_eq!(found.id, apps[1].0.id);
        assert!(store.app_by_slug(workspace, "b").await.unwrap().is_none());
        assert!(store.app_by_slug(agent, "a").await.unwrap().is_none());
    }

    #[test]
    fn health_numbers_are_those_of_the_protocol() {
        for health in AppHealth::ALL {
            assert_eq!(AppHealth::from_number(health.number()), Some(health));
        }
        for bad in [i32::MIN, 0, 5] {
            assert_eq!(AppHealth::from_number(bad), None);
        }
    }
}
