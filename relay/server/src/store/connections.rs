//! The connection log: who opened which app, port or tunnel of a workspace when.

use std::collections::HashSet;
use std::net::IpAddr;

use chrono::{DateTime, Utc};
use sqlx::sqlite::SqliteRow;
use sqlx::{QueryBuilder, Row, Sqlite};
use uuid::Uuid;

use super::{Store, time, uuid};
use crate::error::{Error, Result};
use crate::usage::log::{Entry, Kind};

/// Entries of a workspace that are kept of those who were let in, and as many of those who were
/// not, so that the latter cannot push the former out.
const KEPT: i64 = 1000;

/// An entry of the log, with the names that it means.
#[derive(Clone, Debug)]
pub struct Connection {
    /// Its id.
    pub id: Uuid,
    /// When it was opened.
    pub time: DateTime<Utc>,
    /// The workspace.
    pub workspace_id: Uuid,
    /// Its name.
    pub workspace_name: String,
    /// Its owner.
    pub owner_id: Uuid,
    /// The owner's name.
    pub owner_name: String,
    /// The agent's name.
    pub agent_name: String,
    /// What was opened.
    pub kind: Kind,
    /// The app's slug or the port; empty for a tunnel.
    pub slug_or_port: String,
    /// Who, if that is known.
    pub user: Option<super::User>,
    /// From where.
    pub ip: Option<IpAddr>,
    /// What the browser says of itself.
    pub user_agent: String,
    /// The status of the answer: 200 or 101 for whoever was let in.
    pub status: u16,
}

impl Connection {
    /// Whether the visitor was let in.
    pub fn let_in(&self) -> bool {
        self.status < 300
    }
}

/// Which entries are wanted.
#[derive(Clone, Debug, Default)]
pub struct ConnectionFilter {
    /// Of workspaces of this owner.
    pub owner: Option<Uuid>,
    /// Of this workspace.
    pub workspace: Option<Uuid>,
    /// Of this kind.
    pub kind: Option<Kind>,
    /// By this user.
    pub user: Option<Uuid>,
    /// Those alone that came to an end: let in or refused, and not sent to sign in.
    pub decided: bool,
    /// Most of them.
    pub limit: usize,
    /// Newer ones to leave out.
    pub offset: usize,
}

const TABLES: &str = " FROM connection_log \
     JOIN workspaces ON workspaces.id = connection_log.workspace_id \
     JOIN users AS owners ON owners.id = workspaces.owner_id \
     LEFT JOIN users ON users.id = connection_log.user_id WHERE TRUE";

impl ConnectionFilter {
    fn push(&self, query: &mut QueryBuilder<'_, Sqlite>) {
        let conditions = [
            (" AND workspaces.owner_id = ", self.owner),
            (" AND connection_log.workspace_id = ", self.workspace),
            (" AND connection_log.user_id = ", self.user),
        ];
        for (condition, id) in conditions {
            if let Some(id) = id {
                query.push(condition).push_bind(id.to_string());
            }
        }
        if let Some(kind) = self.kind {
            query
                .push(" AND connection_log.type = ")
                .push_bind(kind.as_str());
        }
        if self.decided {
            query.push(" AND connection_log.status_code NOT BETWEEN 300 AND 399");
        }
    }
}

fn connection(row: &SqliteRow) -> Result<Connection> {
    let corrupt = || Error::Corrupt {
        what: "connection log",
    };
    let kind: String = row.try_get("type")?;
    let user: Option<String> = row.try_get("user_id")?;
    let ip: String = row.try_get("ip")?;
    Ok(Connection {
        id: uuid(row, "log_id")?,
        time: time(row, "connected_at")?,
        workspace_id: uuid(row, "workspace_id")?,
        workspace_name: row.try_get("workspace_name")?,
        owner_id: uuid(row, "owner_id")?,
        owner_name: row.try_get("owner_name")?,
        agent_name: row.try_get("agent_name")?,
        kind: Kind::parse(&kind).ok_or_else(corrupt)?,
        slug_or_port: row.try_get("slug_or_port")?,
        user: match user {
            Some(_) => Some(super::users::user(row)?),
            None => None,
        },
        ip: ip.parse().ok(),
        user_agent: row.try_get("user_agent")?,
        status: u16::try_from(row.try_get::<i64, _>("status_code")?).map_err(|_| corrupt())?,
    })
}

impl Store {
    /// Adds entries, and forgets the oldest of workspaces that have too many.
    pub async fn add_connections(&self, entries: &[Entry]) -> Result<()> {
        let mut transaction = self.begin().await?;
        let mut touched = HashSet::new();
        for Entry { id, time, opened } in entries {
            sqlx::query(
                "INSERT INTO connection_log (id, workspace_id, agent_name, type, slug_or_port, \
                 user_id, ip, user_agent, status_code, connected_at) \
                 SELECT $1, agents.workspace_id, agents.name, $4, $5, \
                 (SELECT users.id FROM users WHERE users.id = $6), $7, $8, $9, $10 \
                 FROM agents WHERE agents.id = $3 AND agents.workspace_id = $2 \
                 ON CONFLICT (id) DO NOTHING",
            )
            .bind(id.to_string())
            .bind(opened.workspace.to_string())
            .bind(opened.agent.to_string())
            .bind(opened.kind.as_str())
            .bind(&opened.slug_or_port)
            .bind(opened.user.map(|user| user.to_string()))
            .bind(opened.ip.to_string())
            .bind(&opened.user_agent)
            .bind(i64::from(opened.status))
            .bind(time.timestamp_micros())
            .execute(&mut *transaction)
            .await?;
            touched.insert(opened.workspace);
        }
        for workspace in touched {
            for side in ["< 300", ">= 300"] {
                let statement = format!(
                    "DELETE FROM connection_log WHERE workspace_id = $1 AND status_code {side} \
                     AND connected_at < (SELECT connected_at FROM connection_log \
                     WHERE workspace_id = $1 AND status_code {side} \
                     ORDER BY connected_at DESC LIMIT 1 OFFSET $2)"
                );
                sqlx::query(&statement)
                    .bind(workspace.to_string())
                    .bind(KEPT - 1)
                    .execute(&mut *transaction)
                    .await?;
            }
        }
        transaction.commit().await?;
        Ok(())
    }

    /// Entries that a filter lets through, the newest first, and how many there are in all.
    pub async fn connections(&self, filter: &ConnectionFilter) -> Result<(Vec<Connection>, i64)> {
        let mut query = QueryBuilder::new(format!("SELECT COUNT(*) AS count{TABLES}"));
        filter.push(&mut query);
        let count = query.build().fetch_one(&self.pool).await?;
        let mut query = QueryBuilder::new(format!(
            "SELECT connection_log.id AS log_id, connection_log.workspace_id, agent_name, type, \
             slug_or_port, ip, user_agent, status_code, connected_at, \
             workspaces.name AS workspace_name, owners.id AS owner_id, \
             owners.username AS owner_name, {}{TABLES}",
            super::users::USER_COLUMNS
        ));
        filter.push(&mut query);
        query
            .push(" ORDER BY connected_at DESC, log_id LIMIT ")
            .push_bind(i64::try_from(filter.limit).unwrap_or(i64::MAX))
            .push(" OFFSET ")
            .push_bind(i64::try_from(filter.offset).unwrap_or(i64::MAX));
        let rows = query.build().fetch_all(&self.pool).await?;
        let found = rows.iter().map(connection).collect::<Result<_>>()?;
        Ok((found, count.try_get("count")?))
    }

    /// Forgets entries from before then.
    pub async fn prune_connections(&self, before: DateTime<Utc>) -> Result<()> {
        sqlx::query("DELETE FROM connection_log WHERE connected_at < $1")
            .bind(before.timestamp_micros())
            .execute(&self.pool)
            .await?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;
    use crate::usage::log::Opened;

    fn entry(opened: &Opened, seconds: i64) -> Entry {
        Entry {
            id: Uuid::new_v4(),
            time: DateTime::from_timestamp(seconds, 0).unwrap(),
            opened: opened.clone(),
        }
    }

    #[tokio::test]
    async fn the_log_is_bounded_for_each_workspace_and_refusals_push_nobody_out() {
        let store = Store::in_memory().await.unwrap();
        let made = store.create_user("alice", "a@b.test", "password", false);
        let alice = made.await.unwrap().id;
        let names = ["main".to_owned()];
        let made = store.create_workspace(alice, "dev", &names).await.unwrap();
        let visit = Opened {
            workspace: made.id,
            agent: made.agents[0].id,
            kind: Kind::PortForwarding,
            slug_or_port: "8080".into(),
            user: Some(alice),
            ip: Ipv4Addr::LOCALHOST.into(),
            user_agent: "curl/8".into(),
            status: 200,
        };
        let refused = Opened {
            user: Some(Uuid::new_v4()),
            status: 404,
            ..visit.clone()
        };
        let gone = Opened {
            agent: Uuid::new_v4(),
            ..visit.clone()
        };
        let mut entries = vec![entry(&visit, 5), entry(&visit, 6), entry(&gone, 7)];
        entries.extend((0..KEPT + 500).map(|second| entry(&refused, 10 + second)));
        let revision = store.revision().await.unwrap();
        store.add_connections(&entries).await.unwrap();
        // The same again, as after a failure half-way.
        store.add_connections(&entries[..2]).await.unwrap();
        assert_eq!(
            store.revision().await.unwrap(),
            revision,
            "no news of rights"
        );
        let mut filter = ConnectionFilter {
            workspace: Some(made.id),
            limit: 10,
            ..ConnectionFilter::default()
        };
        let (found, count) = store.connections(&filter).await.unwrap();
        assert_eq!((found.len(), count), (10, KEPT + 2));
        assert_eq!(found[0].time.timestamp(), 10 + KEPT + 499);
        assert!(found[0].status == 404 && found[0].user.is_none());
        filter.user = Some(alice);
        let (found, count) = store.connections(&filter).await.unwrap();
        assert_eq!(count, 2);
        let first = &found[1];
        assert_eq!(first.time.timestamp(), 5);
        assert_eq!(first.user.as_ref().unwrap().username, "alice");
        assert_eq!(
            (first.owner_name.as_str(), first.workspace_name.as_str()),
            ("alice", "dev")
        );
        assert_eq!(
            (first.agent_name.as_str(), first.ip),
            ("main", Some(visit.ip))
        );
        filter.kind = Some(Kind::Tunnel);
        assert_eq!(store.connections(&filter).await.unwrap().1, 0);
        let cut = DateTime::from_timestamp(6, 0).unwrap();
        store.prune_connections(cut).await.unwrap();
        filter.kind = None;
        assert_eq!(store.connections(&filter).await.unwrap().1, 1);
        store.delete_workspace(made.id).await.unwrap();
        let all = ConnectionFilter::default();
        assert_eq!(store.connections(&all).await.unwrap().1, 0);
    }
}
