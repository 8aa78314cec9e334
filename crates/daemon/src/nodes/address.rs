//! Where nodes are: `host:port`, with `http://` or `https://` before it if the transport is not to be
//! guessed from the configuration.

use std::net::{IpAddr, Ipv6Addr, SocketAddr, UdpSocket};

/// Where nodes listen unless they say otherwise.
pub const PORT_DEFAULT: u16 = 50051;

/// An address that makes sense.
#[derive(Clone, Debug)]
pub struct Address {
    written: String,
    text: String,
    host: String,
    port: u16,
    tls: Option<bool>,
}

impl PartialEq for Address {
    fn eq(&self, other: &Self) -> bool {
        self.text.eq_ignore_ascii_case(&other.text)
    }
}

/// Why an address is none.
#[derive(Debug, thiserror::Error)]
#[error("'{given}' is no address of a node: {reason}; give HOST:PORT")]
pub struct AddressError {
    given: String,
    reason: &'static str,
}

impl Address {
    /// Reads an address; without a port it is [`PORT_DEFAULT`].
    ///
    /// # Errors
    ///
    /// It is none, or one that nobody can connect to.
    pub fn parse(given: &str) -> Result<Self, AddressError> {
        let fail = |reason| AddressError { given: given.chars().take(100).collect(), reason };
        let (tls, rest) = if let Some(rest) = given.strip_prefix("https://") {
            (Some(true), rest)
        } else if let Some(rest) = given.strip_prefix("http://") {
            (Some(false), rest)
        } else {
            (None, given)
        };
        let rest = rest.strip_suffix('/').unwrap_or(rest);
        let (host, port) = if let Some(rest) = rest.strip_prefix('[') {
            let (host, rest) = rest.split_once(']').ok_or_else(|| fail("a ']' is missing"))?;
            host.parse::<Ipv6Addr>().map_err(|_unparsed| fail("no IPv6 address in brackets"))?;
            let port = match rest.strip_prefix(':') {
                None if rest.is_empty() => None,
                port => Some(port.ok_or_else(|| fail("something follows the ']'"))?),
            };
            (host, port)
        } else if rest.parse::<Ipv6Addr>().is_ok() {
            (rest, None)
        } else {
            match rest.split_once(':') {
                Some((host, port)) => (host, Some(port)),
                None => (rest, None),
            }
        };
        let port = match port {
            None => PORT_DEFAULT,
            Some(port) => port
                .parse::<u16>()
                .ok()
                .filter(|&port| port != 0)
                .ok_or_else(|| fail("no port from 1 to 65535"))?,
        };
        let ip = host.parse::<IpAddr>().ok();
        if ip.is_none() {
            let is_name = !host.is_empty()
                && host.len() <= 253
                && host.bytes().all(|b| b.is_ascii_alphanumeric() || b"-._".contains(&b));
            if !is_name {
                return Err(fail("no host name"));
            }
        }
        if ip.is_some_and(|ip| ip.is_unspecified() || ip.is_multicast()) {
            return Err(fail("nobody can be reached there"));
        }
        let text = match ip {
            Some(IpAddr::V6(ip)) => format!("[{ip}]:{port}"),
            _ => format!("{host}:{port}"),
        };
        Ok(Self { written: given.to_owned(), text, host: host.to_owned(), port, tls })
    }

    /// `host:port`.
    #[must_use]
    pub fn text(&self) -> &str {
        &self.text
    }

    /// As it was given.
    #[must_use]
    pub fn written(&self) -> &str {
        &self.written
    }

    /// The host's name or number.
    #[must_use]
    pub fn host(&self) -> &str {
        &self.host
    }

    /// The port.
    #[must_use]
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Whether it said that TLS is to be used, or not.
    #[must_use]
    pub fn tls(&self) -> Option<bool> {
        self.tls
    }
}

/// The address that a sender claims, if it can be reached at it. What means the sender's own machine,
/// or no machine, is replaced by where its connection comes from.
pub(super) fn reachable(claimed: &str, from: Option<IpAddr>) -> Option<Address> {
    let (host, port) = match claimed.parse::<SocketAddr>() {
        Ok(claimed) => (Some(claimed.ip().to_canonical()), claimed.port()),
        Err(_) => return Address::parse(claimed).ok(),
    };
    let host = match (host, from) {
        (Some(host), Some(from)) if host.is_unspecified() => from,
        (Some(host), Some(from)) if host.is_loopback() && !from.is_loopback() => from,
        (Some(host), _) => host,
        (None, _) => return None,
    };
    Address::parse(&SocketAddr::new(host, port).to_string()).ok()
}

/// The address of this machine that packets to this one leave from. Connecting a datagram socket sends
/// nothing.
#[must_use]
pub fn route_to(peer: IpAddr) -> Option<IpAddr> {
    let any: IpAddr = if peer.is_ipv4() { [0; 4].into() } else { Ipv6Addr::UNSPECIFIED.into() };
    let socket = UdpSocket::bind((any, 0)).ok()?;
    // Port 9, discard: any port will do.
    socket.connect((peer, 9)).ok()?;
    let address = socket.local_addr().ok()?.ip();
    (!address.is_unspecified()).then_some(address)
}

/// What a peer is told about where we are: what is configured, or the address of the route to it if
/// something listens there. Empty if nothing does: then we can ask it, and it cannot ask us.
pub(super) fn advertised(
    configured: Option<&str>,
    listen: &[SocketAddr],
    peer: Option<IpAddr>,
) -> String {
    if let Some(configured) = configured {
        return configured.to_owned();
    }
    let route = match peer {
        Some(peer) => route_to(peer),
        // For nobody in particular: the address that reaches farthest. These two are for documentation
        // (RFC 5737, RFC 3849), so they go by the default route.
        None => {
            let outside = [IpAddr::from([192, 0, 2, 1]), "2001:db8::1".parse().unwrap_or(ANY)];
            outside
                .into_iter()
                .filter_map(route_to)
                .find(|&route| listener(listen, route).is_some())
                .or_else(|| listen.first().map(SocketAddr::ip).filter(|ip| !ip.is_unspecified()))
        }
    };
    let Some(route) = route else { return String::new() };
    let Some(port) = listener(listen, route) else { return String::new() };
    // A route to this very machine may have any of its addresses; only a loopback peer may hear of ours.
    if route.is_loopback() && peer.is_some_and(|peer| !peer.is_loopback()) {
        return String::new();
    }
    SocketAddr::new(route, port).to_string()
}

const ANY: IpAddr = IpAddr::V6(Ipv6Addr::UNSPECIFIED);

/// The port of a listener that takes connections to this address.
fn listener(listen: &[SocketAddr], ip: IpAddr) -> Option<u16> {
    let takes = |listening: &&SocketAddr| {
        listening.ip() == ip
            // A socket on [::] takes IPv4 too.
            || (listening.ip().is_unspecified() && (ip.is_ipv4() || listening.is_ipv6()))
    };
    listen.iter().find(takes).map(SocketAddr::port)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_read_or_refused() {
        for (given, text) in [
            ("a.example:1", "a.example:1"),
            ("10.0.0.1", "10.0.0.1:50051"),
            ("[::1]:7", "[::1]:7"),
            ("::1", "[::1]:50051"),
            ("https://b:2/", "b:2"),
        ] {
            assert_eq!(Address::parse(given).unwrap().text(), text);
        }
        assert_eq!(Address::parse("https://b:2").unwrap().tls(), Some(true));
        let wrong = [
            "",
            ":1",
            "a:0",
            "a:65536",
            "a b:1",
            "0.0.0.0:1",
            "[::]:1",
            "[::1",
            "a:b:c",
            "224.0.0.1",
        ];
        for given in wrong {
            assert!(Address::parse(given).is_err(), "{given}");
        }
    }

    #[test]
    fn nobody_is_told_an_address_that_leads_to_himself() {
        let any: Vec<SocketAddr> = vec!["0.0.0.0:50051".parse().unwrap()];
        let local: Vec<SocketAddr> = vec!["127.0.0.1:50051".parse().unwrap()];
        let loopback: IpAddr = [127, 0, 0, 1].into();
        assert_eq!(advertised(None, &any, Some(loopback)), "127.0.0.1:50051");
        assert_eq!(advertised(None, &local, Some(loopback)), "127.0.0.1:50051");
        // Whether there is a route or not: never the loopback address or 0.0.0.0.
        let outside: IpAddr = [192, 0, 2, 1].into();
        assert_eq!(advertised(None, &local, Some(outside)), "");
        assert_eq!(advertised(Some("me:1"), &local, Some(outside)), "me:1");
        let told = advertised(None, &any, Some(outside));
        assert!(told.is_empty() || !told.starts_with("127.") && !told.starts_with("0."), "{told}");
    }

    #[test]
    fn what_a_sender_cannot_know_is_replaced() {
        let from: Option<IpAddr> = Some([10, 0, 0, 7].into());
        for claimed in ["0.0.0.0:5", "127.0.0.1:5", "[::1]:5", "[::]:5"] {
            assert_eq!(reachable(claimed, from).unwrap().text(), "10.0.0.7:5");
        }
        assert_eq!(reachable("10.0.0.9:5", from).unwrap().text(), "10.0.0.9:5");
        assert_eq!(reachable("name:5", from).unwrap().text(), "name:5");
        let loopback: Option<IpAddr> = Some([127, 0, 0, 1].into());
        assert_eq!(reachable("127.0.0.1:5", loopback).unwrap().text(), "127.0.0.1:5");
        assert!(reachable("", from).is_none() && reachable("0.0.0.0:5", None).is_none());
    }
}
