-- What apps were used for, and who opened what.
CREATE TABLE app_stats (
    id TEXT PRIMARY KEY,
    workspace_id TEXT NOT NULL REFERENCES workspaces (id) ON DELETE CASCADE,
    -- The name, since a build makes new agents.
    agent_name TEXT NOT NULL,
    -- NULL for visitors who are not signed in.
    user_id TEXT,
    access_method TEXT NOT NULL,
    slug_or_port TEXT NOT NULL,
    session_started_at BIGINT NOT NULL,
    session_ended_at BIGINT NOT NULL,
    requests BIGINT NOT NULL
);

CREATE INDEX app_stats_by_workspace ON app_stats (workspace_id, session_ended_at);

CREATE INDEX app_stats_by_end ON app_stats (session_ended_at);

CREATE TABLE connection_log (
    id TEXT PRIMARY KEY,
    workspace_id TEXT NOT NULL REFERENCES workspaces (id) ON DELETE CASCADE,
    agent_name TEXT NOT NULL,
    type TEXT NOT NULL,
    slug_or_port TEXT NOT NULL,
    user_id TEXT REFERENCES users (id) ON DELETE SET NULL,
    ip TEXT NOT NULL,
    user_agent TEXT NOT NULL,
    status_code BIGINT NOT NULL,
    connected_at BIGINT NOT NULL
);

CREATE INDEX connection_log_by_workspace ON connection_log (workspace_id, connected_at);

CREATE INDEX connection_log_by_time ON connection_log (connected_at);
