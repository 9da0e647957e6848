//! Which agents the server's end has tunnels to, and when an agent may be spoken to; no I/O.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use relay_tunnel::endpoint::PeerNode;
use relay_wire::keys::NodePublic;
use uuid::Uuid;

/// How long an agent may take to say that it has installed this end; then it is used all the same.
const READY_WITHIN: Duration = Duration::from_secs(5);

/// What is to be done.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Step {
    /// Ask the coordinator for a tunnel.
    Join(Uuid),
    /// Give the tunnel back.
    Part(Uuid),
    /// Let the agent be reached like this.
    Install(Uuid, PeerNode),
    /// End everything with the agent.
    Remove(Uuid),
    /// Find out through the tunnel whether the agent is there.
    Ask(Uuid, u64),
}

/// An agent that may be dialled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Target {
    /// Another one for each process of the agent.
    pub(super) generation: u64,
    /// The coordinator sees the agent. It may be reachable even when not.
    pub(super) present: bool,
}

/// The agents with tunnels.
#[derive(Default)]
pub(super) struct Plan {
    agents: HashMap<Uuid, Agent>,
    generations: u64,
}

#[derive(Default)]
struct Agent {
    /// Not known to be ready yet, and until when that is waited for.
    waiting: Option<(PeerNode, Instant)>,
    installed: Option<(NodePublic, Target)>,
}

impl Plan {
    /// Takes these agents, and no others.
    pub(super) fn set(&mut self, wanted: &[Uuid]) -> Vec<Step> {
        let mut steps = Vec::new();
        self.agents.retain(|id, agent| {
            let keep = wanted.contains(id);
            if !keep {
                steps.push(Step::Part(*id));
                if agent.installed.is_some() {
                    steps.push(Step::Remove(*id));
                }
            }
            keep
        });
        for id in wanted {
            self.agents.entry(*id).or_insert_with(|| {
                steps.push(Step::Join(*id));
                Agent::default()
            });
        }
        steps
    }

    /// All agents.
    pub(super) fn agents(&self) -> impl Iterator<Item = Uuid> {
        self.agents.keys().copied()
    }

    /// Where dials to the agent go now.
    pub(super) fn target(&self, id: Uuid) -> Option<Target> {
        Some(self.agents.get(&id)?.installed?.1)
    }

    /// The coordinator told how the agent is reached.
    pub(super) fn node(&mut self, id: Uuid, node: PeerNode, now: Instant) -> Option<Step> {
        let agent = self.agents.get_mut(&id)?;
        let known = agent
            .installed
            .is_some_and(|(key, target)| target.present && key == node.key);
        if known {
            return Some(Step::Install(id, node));
        }
        let due = match &agent.waiting {
            Some((before, due)) if before.key == node.key => *due,
            _ => now + READY_WITHIN,
        };
        agent.waiting = Some((node, due));
        None
    }

    /// The agent has installed this end.
    pub(super) fn ready(&mut self, id: Uuid) -> Option<Step> {
        let agent = self.agents.get_mut(&id)?;
        let (node, _) = agent.waiting.take()?;
        let generation = match agent.installed {
            Some((key, target)) if key == node.key => target.generation,
            _ => {
                self.generations += 1;
                self.generations
            }
        };
        let target = Target {
            generation,
            present: true,
        };
        agent.installed = Some((node.key, target));
        Some(Step::Install(id, node))
    }

    /// The agent's control connection broke: it may live on, or not.
    pub(super) fn lost(&mut self, id: Uuid) -> Option<Step> {
        let agent = self.agents.get_mut(&id)?;
        agent.waiting = None;
        let (_, target) = agent.installed.as_mut()?;
        target.present = false;
        Some(Step::Ask(id, target.generation))
    }

    /// The agent took its leave.
    pub(super) fn gone(&mut self, id: Uuid) -> Option<Step> {
        let agent = self.agents.get_mut(&id)?;
        agent.waiting = None;
        agent.installed.take()?;
        Some(Step::Remove(id))
    }

    /// An agent that was asked did not answer.
    pub(super) fn silent(&mut self, id: Uuid, generation: u64) -> Option<Step> {
        let agent = self.agents.get_mut(&id)?;
        let (_, target) = agent.installed?;
        if target.present || target.generation != generation {
            return None;
        }
        agent.installed = None;
        Some(Step::Remove(id))
    }

    /// Asks the lost agents once more.
    pub(super) fn doubt(&self) -> Vec<Step> {
        let lost = self.agents.iter().filter_map(|(id, agent)| {
            let (_, target) = agent.installed?;
            (!target.present).then_some(Step::Ask(*id, target.generation))
        });
        lost.collect()
    }

    /// When [`Plan::overdue`] has something to do.
    pub(super) fn poll_timeout(&self) -> Option<Instant> {
        let waiting = self.agents.values().filter_map(|a| a.waiting.as_ref());
        waiting.map(|(_, due)| *due).min()
    }

    /// Takes the agents that did not say in time that they are ready.
    pub(super) fn overdue(&mut self, now: Instant) -> Vec<Step> {
        let late = |agent: &Agent| matches!(agent.waiting, Some((_, due)) if due <= now);
        let late = self.agents.iter().filter(|(_, agent)| late(agent));
        let late: Vec<Uuid> = late.map(|(id, _)| *id).collect();
        late.into_iter().filter_map(|id| self.ready(id)).collect()
    }
}

#[cfg(test)]
mod tests {
    use relay_wire::keys::NodePrivate;

    use super::*;

    const ID: Uuid = Uuid::from_u128(7);

    fn node(key: u8) -> PeerNode {
        PeerNode {
            key: NodePrivate::from_bytes([key; 32]).public(),
            disco: None,
            home: Some(999),
            addresses: Vec::new(),
            endpoints: Vec::new(),
            features: 0,
        }
    }

    /// A plan with one agent that was installed with key 1.
    fn installed(now: Instant) -> Plan {
        let mut plan = Plan::default();
        assert_eq!(plan.set(&[ID]), [Step::Join(ID)]);
        assert_eq!(plan.node(ID, node(1), now), None);
        assert_eq!(plan.ready(ID), Some(Step::Install(ID, node(1))));
        plan
    }

    #[test]
    fn an_agent_is_dialled_once_it_is_ready_and_not_before() {
        let plan = installed(Instant::now());
        let target = plan.target(ID).unwrap();
        assert!(target.present);
        let mut fresh = Plan::default();
        fresh.set(&[ID]);
        assert_eq!(fresh.node(ID, node(1), Instant::now()), None);
        assert_eq!(fresh.target(ID), None);
    }

    #[test]
    fn an_agent_that_never_says_ready_is_used_after_five_seconds() {
        let now = Instant::now();
        let mut plan = Plan::default();
        plan.set(&[ID]);
        plan.node(ID, node(1), now);
        // What it tells anew does not make the wait longer.
        plan.node(ID, node(1), now + Duration::from_secs(3));
        let due = plan.poll_timeout().unwrap();
        assert_eq!(due, now + READY_WITHIN);
        assert_eq!(plan.overdue(due - Duration::from_millis(1)), []);
        assert_eq!(plan.overdue(due), [Step::Install(ID, node(1))]);
        assert_eq!(plan.poll_timeout(), None);
    }

    #[test]
    fn news_of_an_installed_agent_are_passed_on_at_once() {
        let now = Instant::now();
        let mut plan = installed(now);
        let news = PeerNode {
            home: None,
            ..node(1)
        };
        assert_eq!(
            plan.node(ID, news.clone(), now),
            Some(Step::Install(ID, news))
        );
    }

    #[test]
    fn a_lost_agent_is_asked_and_removed_only_when_it_is_silent() {
        let now = Instant::now();
        let mut plan = installed(now);
        let before = plan.target(ID).unwrap().generation;
        assert_eq!(plan.lost(ID), Some(Step::Ask(ID, before)));
        assert!(!plan.target(ID).unwrap().present);
        assert_eq!(plan.doubt(), [Step::Ask(ID, before)]);
        // It comes back as the same process: nothing is torn down.
        plan.node(ID, node(1), now);
        assert_eq!(plan.ready(ID), Some(Step::Install(ID, node(1))));
        assert_eq!(plan.silent(ID, before), None);
        assert_eq!(plan.target(ID).unwrap().generation, before);
        assert_eq!(plan.doubt(), []);
        // As another one: dials start anew.
        plan.lost(ID);
        plan.node(ID, node(2), now);
        plan.ready(ID);
        assert_ne!(plan.target(ID).unwrap().generation, before);
        assert_eq!(plan.silent(ID, before), None);
        let after = plan.target(ID).unwrap().generation;
        plan.lost(ID);
        assert_eq!(plan.silent(ID, after), Some(Step::Remove(ID)));
        assert_eq!(plan.target(ID), None);
    }

    #[test]
    fn an_agent_that_leaves_is_removed_at_once_and_its_tunnel_stays_asked_for() {
        let mut plan = installed(Instant::now());
        assert_eq!(plan.gone(ID), Some(Step::Remove(ID)));
        assert_eq!(plan.gone(ID), None);
        assert_eq!(plan.target(ID), None);
        assert_eq!(plan.set(&[ID]), []);
        assert_eq!(plan.set(&[]), [Step::Part(ID)]);
        let mut plan = installed(Instant::now());
        assert_eq!(plan.set(&[]), [Step::Part(ID), Step::Remove(ID)]);
        assert_eq!(plan.node(ID, node(1), Instant::now()), None);
        assert_eq!(plan.agents().count(), 0);
    }
}
