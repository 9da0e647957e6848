//! Whatever listens in the workspace, on the same port here: followed as it comes and goes. What
//! to do about a list is decided without I/O.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::time::Duration;

use relay_wire::forwards::{AnyForward, There, UnixForward};
use relay_wire::remote_forward::RemoteForward;
use relay_wire::spec::{Forward, Proto};

use crate::agent_api::{self, Port};
use crate::board::{Board, Key};
use crate::event::{Event, Reporter};
use crate::run::Handle;
use crate::way::{Way, reason};

/// How often the agent is asked. Its list may be a second old.
const PERIOD: Duration = Duration::from_secs(2);
/// The smallest port that is forwarded: those below are the agent's own services.
const FIRST_PORT: u16 = 9;

/// Follows the workspace until it is dropped.
pub(crate) async fn follow<W: Way>(way: W, handle: Handle, board: Board, report: Reporter) {
    let mut followed = Followed::default();
    let mut unknown = false;
    let mut ticks = tokio::time::interval(PERIOD);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        let ports = match agent_api::listening(&way).await {
            Ok(ports) => ports,
            Err(error) => {
                // An agent that is away is told by others.
                let away = error.kind() == std::io::ErrorKind::TimedOut;
                if !unknown && !away {
                    unknown = true;
                    let reason = reason(&error);
                    report.tell(Event::PortsUnknown { reason });
                }
                continue;
            }
        };
        unknown = false;
        for step in followed.steps(&ports, &named(&board)) {
            match step {
                Step::Add(found) => {
                    let added = add(&found, &handle, &report).await;
                    let quietly = followed.was_skipped(found.port);
                    followed.added(found.port, added.is_ok());
                    if let Err(reason) = added
                        && !quietly
                    {
                        report.tell(Event::Skipped {
                            port: found.port,
                            program: found.process_name,
                            reason,
                        });
                    }
                }
                Step::Remove(port) => {
                    report.tell(Event::Vanished { port });
                    let _ = handle.remove(vec![AnyForward::Port(same(port))]).await;
                }
            }
        }
    }
}

/// Forwards a port, if it is free here; says why not.
async fn add(found: &Port, handle: &Handle, report: &Reporter) -> Result<(), String> {
    let port = found.port;
    // Looked at first, so that a conflict is told once and by one line.
    if let Err(error) = relay_engine::listen((Ipv4Addr::LOCALHOST, port).into()) {
        let why = reason(&error);
        return Err(format!("127.0.0.1:{port} cannot be had here: {why}"));
    }
    report.tell(Event::Appeared {
        port,
        program: found.process_name.clone(),
    });
    let added = handle.add(vec![same(port).into()]).await;
    added.map_err(|error| error.to_string())
}

fn same(port: u16) -> Forward {
    Forward {
        proto: Proto::Tcp,
        bind: None,
        local: port,
        remote: port,
    }
}

/// Ports of the workspace that forwards lead to, or from, by name.
fn named(board: &Board) -> Vec<u16> {
    let ports = board
        .all()
        .into_iter()
        .filter_map(|entry| match &entry.key {
            Key::Any(AnyForward::Port(forward)) if forward.proto == Proto::Tcp => {
                Some(forward.remote)
            }
            Key::Any(AnyForward::Unix(UnixForward {
                there: There::Port(port),
                ..
            })) => Some(*port),
            Key::Any(AnyForward::Reverse(RemoteForward::Tcp { remote, .. })) => Some(*remote),
            _ => None,
        });
    ports.collect()
}

/// What was made of the last list.
#[derive(Debug, Default)]
struct Followed(BTreeMap<u16, State>);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Forwarded,
    /// It could not be; that was told.
    Skipped,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Step {
    Add(Port),
    Remove(u16),
}

impl Followed {
    /// What to do about a list: what is gone first, so that its port here is free again. `named`
    /// ports are forwarded already, by whatever.
    fn steps(&mut self, ports: &[Port], named: &[u16]) -> Vec<Step> {
        let listed = |port: &u16| ports.iter().any(|found| found.port == *port);
        let gone: Vec<_> = self
            .0
            .keys()
            .copied()
            .filter(|port| !listed(port))
            .collect();
        let mut steps = Vec::new();
        for port in gone {
            if self.0.remove(&port) == Some(State::Forwarded) {
                steps.push(Step::Remove(port));
            }
        }
        for found in ports {
            let known = self.0.get(&found.port) == Some(&State::Forwarded);
            let own = found.port < FIRST_PORT || (!known && named.contains(&found.port));
            if !known && !own {
                steps.push(Step::Add(found.clone()));
            }
        }
        steps
    }

    fn was_skipped(&self, port: u16) -> bool {
        self.0.get(&port) == Some(&State::Skipped)
    }

    fn added(&mut self, port: u16, ok: bool) {
        let state = if ok { State::Forwarded } else { State::Skipped };
        self.0.insert(port, state);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn list(ports: &[u16]) -> Vec<Port> {
        let found = |port: &u16| Port {
            process_name: "app".to_owned(),
            port: *port,
        };
        ports.iter().map(found).collect()
    }

    fn adds(ports: &[u16]) -> Vec<Step> {
        list(ports).into_iter().map(Step::Add).collect()
    }

    #[test]
    fn what_comes_is_added_and_what_goes_is_removed() {
        let mut followed = Followed::default();
        assert_eq!(followed.steps(&list(&[80, 8000]), &[]), adds(&[80, 8000]));
        for found in list(&[80, 8000]) {
            followed.added(found.port, true);
        }
        assert_eq!(followed.steps(&list(&[80, 8000]), &[80, 8000]), []);
        let steps = followed.steps(&list(&[80, 9000]), &[80, 8000]);
        assert_eq!(steps, [vec![Step::Remove(8000)], adds(&[9000])].concat());
    }

    #[test]
    fn the_agents_own_ports_and_those_forwarded_by_name_are_left_alone() {
        let mut followed = Followed::default();
        assert_eq!(
            followed.steps(&list(&[1, 4, 8, 9, 8000]), &[8000]),
            adds(&[9])
        );
    }

    #[test]
    fn a_conflict_is_tried_again_and_forgotten_when_the_port_is_gone() {
        let mut followed = Followed::default();
        followed.steps(&list(&[8000]), &[]);
        assert!(!followed.was_skipped(8000));
        followed.added(8000, false);
        assert!(followed.was_skipped(8000));
        assert_eq!(followed.steps(&list(&[8000]), &[]), adds(&[8000]));
        assert_eq!(followed.steps(&list(&[]), &[]), []);
        assert!(!followed.was_skipped(8000));
    }
}
