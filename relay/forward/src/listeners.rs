//! Opens the local sockets, all or none, in the order of the specs.

use relay_engine::accept::Acceptor;
use relay_wire::spec::{Forward, Listen, Proto};
use tokio::net::UdpSocket;

use crate::Error;
use crate::event::{Event, Reporter};
use crate::way::reason;

/// An open local socket.
pub(crate) enum Local {
    Tcp(Acceptor),
    Udp(UdpSocket),
}

/// Opens everything, telling each attempt before it is made. On an error all are closed again.
pub(crate) fn open(forwards: &[Forward], report: &Reporter) -> Result<Vec<(Listen, Local)>, Error> {
    let mut opened = Vec::with_capacity(forwards.len() * 2);
    for listen in forwards.iter().flat_map(Forward::listens) {
        let Listen {
            forward: Forward { proto, remote, .. },
            address: local,
            required,
        } = listen;
        report.tell(Event::Forwarding {
            proto,
            local,
            remote,
        });
        let result = match proto {
            Proto::Tcp => relay_engine::listen(local).map(|tcp| Local::Tcp(Acceptor::new(tcp))),
            Proto::Udp => relay_engine::listen_udp(local).map(Local::Udp),
        };
        match result {
            Ok(socket) => opened.push((listen, socket)),
            Err(error) if required => {
                return Err(Error::Listen {
                    proto,
                    local,
                    reason: reason(&error),
                });
            }
            Err(error) => {
                tracing::info!(%local, reason = reason(&error), "not listening there");
            }
        }
    }
    Ok(opened)
}

#[cfg(test)]
mod tests {
    use std::net::Ipv6Addr;
    use std::sync::{Arc, Mutex};

    use super::*;

    fn forward(proto: Proto, local: u16, remote: u16) -> Forward {
        Forward {
            proto,
            bind: None,
            local,
            remote,
        }
    }

    fn free_port() -> u16 {
        let socket = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        socket.local_addr().unwrap().port()
    }

    #[tokio::test]
    async fn a_busy_port_is_named_and_nothing_stays_open() {
        let busy = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let (first, second) = (free_port(), busy.local_addr().unwrap().port());
        let plan = [
            forward(Proto::Tcp, first, 1),
            forward(Proto::Tcp, second, 2),
        ];
        let lines = Arc::new(Mutex::new(Vec::new()));
        let copy = lines.clone();
        let report = Reporter::new(move |event| copy.lock().unwrap().push(event.to_string()));
        let Err(error) = open(&plan, &report) else {
            panic!("the port was busy")
        };
        assert_eq!(
            error.to_string(),
            format!("listen 'tcp://127.0.0.1:{second}': address already in use")
        );
        assert!(std::net::TcpListener::bind(("127.0.0.1", first)).is_ok());
        assert_eq!(lines.lock().unwrap().len(), 4);
        assert_eq!(
            lines.lock().unwrap()[1],
            format!(
                "Forwarding 'tcp://127.0.0.1:{first}' locally to 'tcp://127.0.0.1:1' in the \
                 workspace"
            )
        );
    }

    #[tokio::test]
    async fn a_busy_ipv6_loopback_is_no_error_unless_asked_for() {
        let Ok(busy) = std::net::TcpListener::bind("[::1]:0") else {
            return;
        };
        let port = busy.local_addr().unwrap().port();
        let report = Reporter::new(|_| {});
        let by_default = open(&[forward(Proto::Tcp, port, 1)], &report);
        assert_eq!(by_default.map(|opened| opened.len()).unwrap(), 1);
        let asked = Forward {
            bind: Some(Ipv6Addr::LOCALHOST.into()),
            ..forward(Proto::Tcp, port, 1)
        };
        assert!(open(&[asked], &report).is_err());
    }
}
