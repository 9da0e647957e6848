//! Shared ports. They belong to a workspace and an agent's name, so they survive builds.

use sqlx::Row;
use sqlx::sqlite::SqliteRow;
use uuid::Uuid;

use super::Store;
use crate::apps::hostname::Protocol;
use crate::apps::ports::Share;
use crate::error::{Error, Result};

fn share(row: &SqliteRow) -> Result<Share> {
    let corrupt = || Error::Corrupt { what: "port share" };
    let level: String = row.try_get("share_level")?;
    let protocol: String = row.try_get("protocol")?;
    Ok(Share {
        agent_name: row.try_get("agent_name")?,
        port: u16::try_from(row.try_get::<i64, _>("port")?).map_err(|_| corrupt())?,
        level: level.parse().map_err(|_| corrupt())?,
        protocol: match protocol.as_str() {
            "http" => Protocol::Http,
            "https" => Protocol::Https,
            _ => return Err(corrupt()),
        },
    })
}

const COLUMNS: &str = "agent_name, port, share_level, protocol";

impl Store {
    /// The shared ports of a workspace, by port.
    pub async fn shares(&self, workspace_id: Uuid) -> Result<Vec<Share>> {
        let statement = format!(
            "SELECT {COLUMNS} FROM port_shares WHERE workspace_id = $1 ORDER BY port, agent_name"
        );
        let rows = sqlx::query(&statement)
            .bind(workspace_id.to_string())
            .fetch_all(&self.pool)
            .await?;
        rows.iter().map(share).collect()
    }

    /// How a port is shared, if it is.
    pub async fn share(
        &self,
        workspace_id: Uuid,
        agent_name: &str,
        port: u16,
    ) -> Result<Option<Share>> {
        let statement = format!(
            "SELECT {COLUMNS} FROM port_shares \
             WHERE workspace_id = $1 AND agent_name = $2 AND port = $3"
        );
        let row = sqlx::query(&statement)
            .bind(workspace_id.to_string())
            .bind(agent_name)
            .bind(i64::from(port))
            .fetch_optional(&self.pool)
            .await?;
        row.as_ref().map(share).transpose()
    }

    /// Shares a port, or changes how it is shared.
    pub async fn put_share(&self, workspace_id: Uuid, share: &Share) -> Result<()> {
        let mut transaction = self.begin().await?;
        sqlx::query(
            "INSERT INTO port_shares (workspace_id, agent_name, port, share_level, protocol) \
             VALUES ($1, $2, $3, $4, $5) ON CONFLICT (workspace_id, agent_name, port) \
             DO UPDATE SET share_level = excluded.share_level, protocol = excluded.protocol",
        )
        .bind(workspace_id.to_string())
        .bind(&share.agent_name)
        .bind(i64::from(share.port))
        .bind(share.level.as_str())
        .bind(share.protocol.scheme())
        .execute(&mut *transaction)
        .await?;
        Self::bump(&mut transaction).await?;
        transaction.commit().await?;
        Ok(())
    }

    /// Takes a share back; false when there is none.
    pub async fn delete_share(
        &self,
        workspace_id: Uuid,
        agent_name: &str,
        port: u16,
    ) -> Result<bool> {
        let mut transaction = self.begin().await?;
        let done = sqlx::query(
            "DELETE FROM port_shares WHERE workspace_id = $1 AND agent_name = $2 AND port = $3",
        )
        .bind(workspace_id.to_string())
        .bind(agent_name)
        .bind(i64::from(port))
        .execute(&mut *transaction)
        .await?;
        if done.rows_affected() == 0 {
            return Ok(false);
        }
        Self::bump(&mut transaction).await?;
        transaction.commit().await?;
        Ok(true)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::apps::access::ShareLevel;

    fn share(port: u16, level: ShareLevel) -> Share {
        Share {
            agent_name: "main".into(),
            port,
            level,
            protocol: Protocol::Http,
        }
    }

    #[tokio::test]
    async fn shares_are_replaced_sorted_deleted_and_go_with_their_workspace() {
        let store = Store::in_memory().await.unwrap();
        let alice = store
            .create_user("alice", "a@b.test", "password", false)
            .await
            .unwrap();
        let made = store
            .create_workspace(alice.id, "dev", &["main".to_owned()])
            .await
            .unwrap();
        let id = made.id;
        let before = store.revision().await.unwrap();
        for share in [
            share(9000, ShareLevel::Public),
            share(80, ShareLevel::Organization),
            share(9000, ShareLevel::Authenticated),
        ] {
            store.put_share(id, &share).await.unwrap();
        }
        let stored = [
            share(80, ShareLevel::Organization),
            share(9000, ShareLevel::Authenticated),
        ];
        assert_eq!(store.shares(id).await.unwrap(), stored);
        let after = store.revision().await.unwrap();
        assert_ne!(before, after);
        let workspace = store.workspace(id).await.unwrap().unwrap();
        store.rebuild_workspace(&workspace).await.unwrap();
        let found = store.share(id, "main", 80).await.unwrap();
        assert_eq!(found.as_ref(), Some(&stored[0]));
        for (agent, port, there) in [
            ("gpu", 80, false),
            ("main", 81, false),
            ("main", 80, true),
            ("main", 80, false),
        ] {
            assert_eq!(store.delete_share(id, agent, port).await.unwrap(), there);
        }
        assert_eq!(store.share(id, "main", 80).await.unwrap(), None);
        store.delete_workspace(id).await.unwrap();
        assert!(store.shares(id).await.unwrap().is_empty());
    }
}
