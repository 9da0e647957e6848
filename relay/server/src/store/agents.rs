//! Agents: who they are, and what they last told about themselves.

use chrono::{DateTime, Utc};
use sqlx::Row;
use sqlx::sqlite::SqliteRow;
use uuid::Uuid;

use super::{App, AppHealth, Store, maybe_time, now, time, uuid};
use crate::error::{Error, Result};
use crate::secrets;

/// The other end of the tunnel, inside a workspace.
#[derive(Clone, Debug)]
pub struct Agent {
    /// Its id; its tunnel addresses follow from it.
    pub id: Uuid,
    /// The workspace.
    pub workspace_id: Uuid,
    /// Its name.
    pub name: String,
    /// When it was created.
    pub created_at: DateTime<Utc>,
    /// When its record last changed.
    pub updated_at: DateTime<Utc>,
    /// When it first connected.
    pub first_connected_at: Option<DateTime<Utc>>,
    /// When it was last known to be connected.
    pub last_connected_at: Option<DateTime<Utc>>,
    /// When its connection last ended.
    pub disconnected_at: Option<DateTime<Utc>>,
    /// When it began to start.
    pub started_at: Option<DateTime<Utc>>,
    /// When it was ready.
    pub ready_at: Option<DateTime<Utc>>,
    /// What it is doing.
    pub lifecycle: Lifecycle,
    /// Its version, with a leading `v`.
    pub version: String,
    /// Its working directory.
    pub directory: String,
    /// Its apps with their health, in the order in which they are shown.
    pub apps: Vec<(App, AppHealth)>,
}

/// What an agent is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum Lifecycle {
    Created,
    Starting,
    StartTimeout,
    StartError,
    Ready,
    ShuttingDown,
    ShutdownTimeout,
    ShutdownError,
    Off,
}

impl Lifecycle {
    const ALL: [(Self, &str); 9] = [
        (Self::Created, "created"),
        (Self::Starting, "starting"),
        (Self::StartTimeout, "start_timeout"),
        (Self::StartError, "start_error"),
        (Self::Ready, "ready"),
        (Self::ShuttingDown, "shutting_down"),
        (Self::ShutdownTimeout, "shutdown_timeout"),
        (Self::ShutdownError, "shutdown_error"),
        (Self::Off, "off"),
    ];

    /// The text in the database and in answers.
    pub fn as_str(self) -> &'static str {
        Self::ALL
            .iter()
            .find(|(state, _)| *state == self)
            .map_or("created", |(_, text)| text)
    }

    fn parse(text: &str) -> Result<Self> {
        let found = Self::ALL.iter().find(|(_, name)| *name == text);
        found.map(|(state, _)| *state).ok_or(Error::Corrupt {
            what: "agent lifecycle",
        })
    }

    /// The state of that number in the agent protocol.
    pub(crate) fn from_number(number: i32) -> Option<Self> {
        let index = usize::try_from(number.checked_sub(1)?).ok()?;
        Self::ALL.get(index).map(|(state, _)| *state)
    }
}

/// An agent, with what decides who may reach it.
#[derive(Clone, Debug)]
pub struct AgentAccess {
    /// The agent.
    pub agent: Agent,
    /// Whose workspace it is in.
    pub owner_id: Uuid,
    /// The owner's name.
    pub owner_name: String,
    /// The workspace's name.
    pub workspace_name: String,
}

const AGENT_COLUMNS: &str = "agents.id AS agent_id, agents.workspace_id, \
     agents.name AS agent_name, agents.created_at AS agent_created_at, agents.updated_at, \
     agents.first_connected_at, agents.last_connected_at, agents.disconnected_at, \
     agents.started_at, agents.ready_at, agents.lifecycle, agents.version, agents.directory";

const ACCESS_SELECT: &str = "workspaces.owner_id, users.username AS owner_name, \
     workspaces.name AS workspace_name, agents.token_hash FROM agents \
     JOIN workspaces ON workspaces.id = agents.workspace_id \
     JOIN users ON users.id = workspaces.owner_id";

fn agent(row: &SqliteRow) -> Result<Agent> {
    Ok(Agent {
        id: uuid(row, "agent_id")?,
        workspace_id: uuid(row, "workspace_id")?,
        name: row.try_get("agent_name")?,
        created_at: time(row, "agent_created_at")?,
        updated_at: time(row, "updated_at")?,
        first_connected_at: maybe_time(row, "first_connected_at")?,
        last_connected_at: maybe_time(row, "last_connected_at")?,
        disconnected_at: maybe_time(row, "disconnected_at")?,
        started_at: maybe_time(row, "started_at")?,
        ready_at: maybe_time(row, "ready_at")?,
        lifecycle: Lifecycle::parse(row.try_get("lifecycle")?)?,
        version: row.try_get("version")?,
        directory: row.try_get("directory")?,
        apps: Vec::new(),
    })
}

fn access(row: &SqliteRow) -> Result<AgentAccess> {
    Ok(AgentAccess {
        agent: agent(row)?,
        owner_id: uuid(row, "owner_id")?,
        owner_name: row.try_get("owner_name")?,
        workspace_name: row.try_get("workspace_name")?,
    })
}

impl Store {
    pub(super) async fn agents_of(&self, workspace_id: Uuid) -> Result<Vec<Agent>> {
        let statement = format!(
            "SELECT {AGENT_COLUMNS} FROM agents WHERE workspace_id = $1 ORDER BY agents.name"
        );
        let rows = sqlx::query(&statement)
            .bind(workspace_id.to_string())
            .fetch_all(&self.pool)
            .await?;
        let mut agents: Vec<_> = rows.iter().map(agent).collect::<Result<_>>()?;
        if !agents.is_empty() {
            let mut apps = self.apps_of_workspace(workspace_id).await?;
            for agent in &mut agents {
                let own = apps.extract_if(.., |(of, _)| *of == agent.id);
                agent.apps = own.map(|(_, app)| app).collect();
            }
        }
        Ok(agents)
    }

    /// The agent of that id.
    pub(crate) async fn agent(&self, id: Uuid) -> Result<Option<AgentAccess>> {
        let statement = format!("SELECT {AGENT_COLUMNS}, {ACCESS_SELECT} WHERE agents.id = $1");
        let row = sqlx::query(&statement)
            .bind(id.to_string())
            .fetch_optional(&self.pool)
            .await?;
        let Some(row) = row else { return Ok(None) };
        self.with_apps(access(&row)?).await.map(Some)
    }

    async fn with_apps(&self, mut access: AgentAccess) -> Result<AgentAccess> {
        access.agent.apps = self.apps_of_agent(access.agent.id).await?;
        Ok(access)
    }

    /// The agent a token belongs to.
    pub(crate) async fn agent_by_token(&self, token: &str) -> Result<Option<AgentAccess>> {
        let Ok(token) = Uuid::parse_str(token) else {
            return Ok(None);
        };
        let hash = secrets::token_hash(&token.to_string());
        let statement =
            format!("SELECT {AGENT_COLUMNS}, {ACCESS_SELECT} WHERE agents.token_hash = $1");
        let row = sqlx::query(&statement)
            .bind(&hash)
            .fetch_optional(&self.pool)
            .await?;
        let Some(row) = row else { return Ok(None) };
        let stored: String = row.try_get("token_hash")?;
        if secrets::equal(&stored, &hash) {
            self.with_apps(access(&row)?).await.map(Some)
        } else {
            Ok(None)
        }
    }

    /// The ids of all agents there are, of started workspaces only.
    pub(crate) async fn agent_ids(&self) -> Result<Vec<Uuid>> {
        let rows = sqlx::query(
            "SELECT agents.id AS agent_id FROM agents JOIN builds \
             ON builds.workspace_id = agents.workspace_id AND builds.build_number = \
             (SELECT MAX(newest.build_number) FROM builds AS newest \
              WHERE newest.workspace_id = agents.workspace_id) \
             WHERE builds.transition = 'start'",
        )
        .fetch_all(&self.pool)
        .await?;
        rows.iter().map(|row| uuid(row, "agent_id")).collect()
    }

    /// Notes that an agent is connected now.
    pub(crate) async fn agent_connected(&self, id: Uuid) -> Result<()> {
        self.agent_update(
            id,
            "first_connected_at = COALESCE(first_connected_at, $2), last_connected_at = $2, \
             updated_at = $2",
        )
        .await
    }

    /// Notes that an agent's connection ended.
    pub(crate) async fn agent_disconnected(&self, id: Uuid) -> Result<()> {
        self.agent_update(
            id,
            "last_connected_at = $2, disconnected_at = $2, updated_at = $2",
        )
        .await
    }

    async fn agent_update(&self, id: Uuid, assignments: &str) -> Result<()> {
        sqlx::query(&format!("UPDATE agents SET {assignments} WHERE id = $1"))
            .bind(id.to_string())
            .bind(now().timestamp_micros())
            .execute(&self.pool)
            .await?;
        Ok(())
    }

    /// Notes what an agent says it is doing.
    pub(crate) async fn agent_lifecycle(&self, id: Uuid, state: Lifecycle) -> Result<()> {
        let times = match state {
            Lifecycle::Starting => ", started_at = $2, ready_at = NULL",
            Lifecycle::Ready | Lifecycle::StartError | Lifecycle::StartTimeout => {
                ", started_at = COALESCE(started_at, $2), ready_at = $2"
            }
            _ => "",
        };
        sqlx::query(&format!(
            "UPDATE agents SET updated_at = $2, lifecycle = $3{times} WHERE id = $1"
        ))
        .bind(id.to_string())
        .bind(now().timestamp_micros())
        .bind(state.as_str())
        .execute(&self.pool)
        .await?;
        Ok(())
    }

    /// Notes an agent's version and directory.
    pub(crate) async fn agent_startup(
        &self,
        id: Uuid,
        version: &str,
        directory: &str,
    ) -> Result<()> {
        sqlx::query(
            "UPDATE agents SET updated_at = $2, version = $3, directory = $4 WHERE id = $1",
        )
        .bind(id.to_string())
        .bind(now().timestamp_micros())
        .bind(version)
        .bind(directory)
        .execute(&self.pool)
        .await?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lifecycle_numbers_are_those_of_the_protocol() {
        assert_eq!(Lifecycle::from_number(1), Some(Lifecycle::Created));
        assert_eq!(Lifecycle::from_number(5), Some(Lifecycle::Ready));
        assert_eq!(Lifecycle::from_number(9), Some(Lifecycle::Off));
        for bad in [i32::MIN, -1, 0, 10] {
            assert_eq!(Lifecycle::from_number(bad), None, "{bad}");
        }
    }

    #[tokio::test]
    async fn connection_times_are_kept() {
        let store = Store::in_memory().await.unwrap();
        let alice = store
            .create_user("alice", "a@b.test", "password", false)
            .await
            .unwrap();
        let made = store
            .create_workspace(alice.id, "dev", &["main".to_owned()])
            .await
            .unwrap();
        let id = made.agents[0].id;
        assert_eq!(store.agent_ids().await.unwrap(), [id]);
        store.agent_connected(id).await.unwrap();
        let first = store
            .agent(id)
            .await
            .unwrap()
            .unwrap()
            .agent
            .first_connected_at;
        assert!(first.is_some());
        store.agent_disconnected(id).await.unwrap();
        store.agent_connected(id).await.unwrap();
        store
            .agent_lifecycle(id, Lifecycle::Starting)
            .await
            .unwrap();
        store.agent_lifecycle(id, Lifecycle::Ready).await.unwrap();
        store
            .agent_startup(id, "v0.1.0", "/home/alice")
            .await
            .unwrap();
        let agent = store.agent(id).await.unwrap().unwrap().agent;
        assert_eq!(agent.first_connected_at, first);
        assert!(agent.disconnected_at.is_some() && agent.ready_at.is_some());
        assert_eq!(
            (agent.lifecycle, agent.version.as_str()),
            (Lifecycle::Ready, "v0.1.0")
        );
    }
}
