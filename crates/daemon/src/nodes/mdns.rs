//! Nodes of the local network, by multicast DNS (RFC 6762, RFC 6763).

use std::collections::HashMap;
use std::fmt;
use std::net::{IpAddr, SocketAddr};

use mdns_sd::{ServiceDaemon, ServiceEvent, ServiceInfo};

use super::address::Address;
use super::{FoundBy, Nodes, NodesError};

/// What nodes call themselves there, since the first Librorum.
const SERVICE: &str = "_librorum._tcp.local.";

/// We announce ourselves and hear others until this is dropped.
pub(super) struct Announcement {
    daemon: ServiceDaemon,
}

impl fmt::Debug for Announcement {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.debug_struct("Announcement").finish_non_exhaustive()
    }
}

impl Announcement {
    pub(super) fn start(nodes: &Nodes) -> Result<Self, NodesError> {
        let daemon = ServiceDaemon::new()?;
        match announced(nodes.own_id(), nodes.own_system(), &nodes.inner.listen) {
            Some(service) => daemon.register(service?)?,
            None => tracing::warn!(
                "nothing listens beyond loopback: this node hears others by mDNS and stays unheard"
            ),
        }
        let events = daemon.browse(SERVICE)?;
        let nodes = nodes.clone();
        std::thread::Builder::new().name("nodes-mdns".to_owned()).spawn(move || {
            // Ends when the daemon is shut down.
            while let Ok(event) = events.recv() {
                let ServiceEvent::ServiceResolved(service) = event else { continue };
                let id = service.get_property_val_str("node_id").unwrap_or("");
                let addresses = service.get_addresses().iter().map(|address| address.to_ip_addr());
                if let Some(address) = heard(addresses.collect(), service.get_port())
                    && !id.is_empty()
                {
                    nodes.met(id, address, FoundBy::Mdns);
                }
            }
        })?;
        Ok(Self { daemon })
    }
}

impl Drop for Announcement {
    fn drop(&mut self) {
        if let Err(error) = self.daemon.shutdown() {
            tracing::debug!(%error, "ending mDNS");
        }
    }
}

/// What we say of ourselves, if anybody could reach us.
fn announced(
    id: &str,
    system: &str,
    listen: &[SocketAddr],
) -> Option<Result<ServiceInfo, mdns_sd::Error>> {
    let listening = listen.iter().find(|address| !address.ip().is_loopback())?;
    let properties = HashMap::from([
        ("node_id".to_owned(), id.to_owned()),
        ("version".to_owned(), env!("CARGO_PKG_VERSION").to_owned()),
        ("system".to_owned(), system.to_owned()),
    ]);
    // The node id is unique; machines' names need not be.
    let host = format!("{id}.local.");
    let addresses: &[IpAddr] =
        if listening.ip().is_unspecified() { &[] } else { &[listening.ip()] };
    let service = ServiceInfo::new(SERVICE, id, &host, addresses, listening.port(), properties);
    let service = service
        .map(|service| if addresses.is_empty() { service.enable_addr_auto() } else { service });
    Some(service)
}

/// The best of the addresses that a node announced: IPv4 first, because link-local IPv6 addresses
/// need a zone that nobody writes.
fn heard(mut addresses: Vec<IpAddr>, port: u16) -> Option<Address> {
    addresses.retain(|address| match address {
        IpAddr::V4(address) => !address.is_unspecified(),
        IpAddr::V6(address) => !address.is_unspecified() && !address.is_unicast_link_local(),
    });
    addresses.sort_by_key(|address| (address.is_loopback(), address.is_ipv6(), *address));
    let best = *addresses.first()?;
    Address::parse(&SocketAddr::new(best, port).to_string()).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_is_announced_with_what_the_first_librorum_looks_for() {
        let any = ["0.0.0.0:50051".parse().unwrap()];
        let service = announced("some-id", "m; librorum", &any).unwrap().unwrap();
        assert!(service.get_fullname().ends_with(SERVICE));
        assert_eq!(service.get_port(), 50051);
        assert!(service.is_addr_auto());
        for key in ["node_id", "version", "system"] {
            assert!(!service.get_property_val_str(key).unwrap().is_empty(), "{key}");
        }
        let one = ["10.0.0.5:7".parse().unwrap()];
        let service = announced("some-id", "m", &one).unwrap().unwrap();
        assert!(!service.is_addr_auto());
        assert!(announced("some-id", "m", &["127.0.0.1:7".parse().unwrap()]).is_none());
    }

    #[test]
    fn the_best_address_is_taken() {
        let addresses = ["fe80::1", "127.0.0.1", "2001:db8::1", "10.0.0.7"];
        let addresses = addresses.map(|address| address.parse().unwrap());
        assert_eq!(heard(addresses.to_vec(), 5).unwrap().text(), "10.0.0.7:5");
        assert_eq!(heard(addresses[..1].to_vec(), 5), None);
    }
}
