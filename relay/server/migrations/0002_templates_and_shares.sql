-- Templates with their apps, shared ports, and keys that only open apps.
CREATE TABLE templates (
    id TEXT PRIMARY KEY,
    name TEXT NOT NULL UNIQUE,
    max_share_level TEXT NOT NULL,
    cors_behavior TEXT NOT NULL,
    -- Agents and apps as JSON: they are only ever read whole.
    definition TEXT NOT NULL,
    created_at BIGINT NOT NULL,
    updated_at BIGINT NOT NULL
);

ALTER TABLE workspaces ADD COLUMN template_id TEXT REFERENCES templates (id) ON DELETE SET NULL;

-- Whether its agents were named for it alone, and not by its template.
ALTER TABLE workspaces ADD COLUMN own_agents BOOLEAN NOT NULL DEFAULT TRUE;

CREATE TABLE apps (
    id TEXT PRIMARY KEY,
    agent_id TEXT NOT NULL REFERENCES agents (id) ON DELETE CASCADE,
    slug TEXT NOT NULL,
    health TEXT NOT NULL,
    definition TEXT NOT NULL,
    UNIQUE (agent_id, slug)
);

CREATE TABLE port_shares (
    workspace_id TEXT NOT NULL REFERENCES workspaces (id) ON DELETE CASCADE,
    agent_name TEXT NOT NULL,
    port BIGINT NOT NULL,
    share_level TEXT NOT NULL,
    protocol TEXT NOT NULL,
    PRIMARY KEY (workspace_id, agent_name, port)
);

-- `all`, or `application_connect` for keys that only open apps; these end with their session.
ALTER TABLE api_keys ADD COLUMN scope TEXT NOT NULL DEFAULT 'all';

ALTER TABLE api_keys ADD COLUMN session_id TEXT REFERENCES api_keys (id) ON DELETE CASCADE;

CREATE INDEX api_keys_by_session ON api_keys (session_id);
