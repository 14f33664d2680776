//! A stub resolver: SRV records, and the addresses of hosts, as Go's resolver finds them.
//!
//! It asks the name servers of `/etc/resolv.conf` (or those that it is given) in turn, over UDP, and over TCP when an
//! answer was cut off; addresses also come from `/etc/hosts`. It blocks for as long as the servers take, at most
//! attempts times timeout for each server and name, twice that where an answer was cut off. What servers send is never
//! trusted to be well formed, and nothing is kept between two questions.
#![forbid(unsafe_code)]

mod exchange;
mod order;
mod system;
#[cfg(feature = "testing")]
pub mod testing;
#[cfg(test)]
mod tests;

use std::collections::hash_map::RandomState;
use std::hash::BuildHasher;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::Duration;

use simple_dns::TYPE;
use simple_dns::rdata::RData;

/// One instance of a service.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Srv {
    /// Lower ones are to be tried first.
    pub priority: u16,
    /// Share of the calls among those of one priority.
    pub weight: u16,
    /// TCP or UDP port.
    pub port: u16,
    /// The host's name, without the final dot.
    pub target: String,
}

/// Why there is no answer. The texts are those of Go's resolver.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum LookupError {
    /// The servers say that there is nothing of that name.
    #[error("lookup {name} on {server}: no such host")]
    NoSuchHost {
        /// What was looked for.
        name: String,
        /// Who said so.
        server: SocketAddr,
    },
    /// A server answered with an error, or with something that cannot be read.
    #[error("lookup {name} on {server}: server misbehaving")]
    Misbehaving {
        /// What was looked for.
        name: String,
        /// The last server that was asked.
        server: SocketAddr,
    },
    /// No server could be reached, or none answered in time.
    #[error("lookup {name} on {server}: {reason}")]
    Unreachable {
        /// What was looked for.
        name: String,
        /// The last server that was asked.
        server: SocketAddr,
        /// `i/o timeout`, or the operating system's answer.
        reason: String,
    },
    /// The text is no name that could be asked for.
    #[error("lookup {name}: no such host")]
    BadName {
        /// The text.
        name: String,
    },
}

/// Whom to ask, and how.
#[derive(Debug, Clone)]
pub struct Resolver {
    servers: Vec<SocketAddr>,
    /// Suffixes for names with fewer than `ndots` dots.
    search: Vec<String>,
    ndots: usize,
    /// For one question to one server.
    timeout: Duration,
    attempts: usize,
    /// Content of `/etc/hosts`: names in lower case.
    hosts: Vec<(String, IpAddr)>,
}

impl Resolver {
    /// What the system is configured for; servers and times at their defaults where its files cannot be read.
    pub fn system() -> Resolver {
        system::resolver()
    }

    /// Asks these servers alone; knows no search list and no file of hosts. There must be a server.
    pub fn of_servers(servers: Vec<SocketAddr>) -> Resolver {
        assert!(!servers.is_empty(), "a resolver has a server");
        Resolver {
            servers,
            search: Vec::new(),
            ndots: 1,
            timeout: Duration::from_secs(5),
            attempts: 2,
            hosts: Vec::new(),
        }
    }

    /// The same with another limit for one question to one server.
    pub fn with_timeout(self, timeout: Duration) -> Resolver {
        Resolver { timeout, ..self }
    }

    /// The instances of `_SERVICE._tcp.DOMAIN`: by priority, and within one priority in a random order that the
    /// weights decide.
    ///
    /// # Errors
    /// There is none, or nobody tells.
    pub fn srv(&self, service: &str, domain: &str) -> Result<Vec<Srv>, LookupError> {
        let name = format!("_{service}._tcp.{domain}");
        let found = self.ask(&name, TYPE::SRV, |data| match data {
            RData::SRV(srv) => Some(Srv {
                priority: srv.priority,
                weight: srv.weight,
                port: srv.port,
                target: srv.target.to_string(),
            })
            .filter(|srv| is_host(&srv.target)),
            _ => None,
        })?;
        Ok(order::by_priority_and_weight(found, |bound| random() % bound))
    }

    /// The addresses of a host: itself where it is one, those of the file of hosts, else those that servers tell, IPv4
    /// first.
    ///
    /// # Errors
    /// There is none, or nobody tells.
    pub fn addresses(&self, host: &str) -> Result<Vec<IpAddr>, LookupError> {
        if let Ok(address) = host.parse() {
            return Ok(vec![address]);
        }
        let plain = host.strip_suffix('.').unwrap_or(host).to_ascii_lowercase();
        let mut here: Vec<IpAddr> =
            self.hosts.iter().filter(|(name, _)| *name == plain).map(|(_, address)| *address).collect();
        if here.is_empty() && plain == "localhost" {
            here.push(Ipv4Addr::LOCALHOST.into());
        }
        if !here.is_empty() {
            here.sort_by_key(IpAddr::is_ipv6);
            return Ok(here);
        }
        let four = self.ask(host, TYPE::A, |data| match data {
            RData::A(a) => Some(IpAddr::from(a.address.to_be_bytes())),
            _ => None,
        });
        let six = self.ask(host, TYPE::AAAA, |data| match data {
            RData::AAAA(a) => Some(IpAddr::from(a.address.to_be_bytes())),
            _ => None,
        });
        match (four, six) {
            (Ok(four), six) => Ok(four.into_iter().chain(six.unwrap_or_default()).collect()),
            (Err(_), Ok(six)) => Ok(six),
            (Err(error), Err(_)) => Err(error),
        }
    }

    /// Asks for a name and, where it is short, for those that the search list makes of it.
    fn ask<T>(
        &self,
        name: &str,
        kind: TYPE,
        take: impl Fn(&RData<'_>) -> Option<T>,
    ) -> Result<Vec<T>, LookupError> {
        let mut first_error = None;
        for full in self.candidates(name) {
            match self.ask_servers(&full, kind, &take) {
                Ok(found) => return Ok(found),
                Err(error) => first_error = first_error.or(Some(error)),
            }
        }
        Err(first_error.unwrap_or_else(|| LookupError::BadName { name: name.to_owned() }))
    }

    /// The full names to try, in order.
    fn candidates(&self, name: &str) -> Vec<String> {
        let Some(short) = Some(name).filter(|name| !name.ends_with('.')) else {
            return vec![name.to_owned()];
        };
        let mut names: Vec<String> = self.search.iter().map(|suffix| format!("{short}.{suffix}")).collect();
        let at = if short.matches('.').count() >= self.ndots { 0 } else { names.len() };
        names.insert(at, short.to_owned());
        names
    }

    fn ask_servers<T>(
        &self,
        name: &str,
        kind: TYPE,
        take: impl Fn(&RData<'_>) -> Option<T>,
    ) -> Result<Vec<T>, LookupError> {
        let mut last = LookupError::BadName { name: name.to_owned() };
        let Some(question) = exchange::question(random() as u16, name, kind) else { return Err(last) };
        for _ in 0..self.attempts {
            for &server in &self.servers {
                match exchange::ask(&question, server, self.timeout, &take) {
                    Ok(Some(found)) if !found.is_empty() => return Ok(found),
                    Ok(Some(_)) => return Err(LookupError::NoSuchHost { name: name.to_owned(), server }),
                    Ok(None) => last = LookupError::Misbehaving { name: name.to_owned(), server },
                    Err(error) => {
                        let reason = match error.kind() {
                            std::io::ErrorKind::WouldBlock | std::io::ErrorKind::TimedOut => {
                                "i/o timeout".to_owned()
                            }
                            _ => error.to_string(),
                        };
                        last = LookupError::Unreachable { name: name.to_owned(), server, reason };
                    }
                }
            }
        }
        Err(last)
    }
}

/// A name of a host as it may stand in a URL: anything else in a record is dropped.
fn is_host(name: &str) -> bool {
    !name.is_empty()
        && name.len() <= 253
        && name.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.'))
}

/// A number that nobody outside can foretell.
fn random() -> u64 {
    RandomState::new().hash_one(std::process::id())
}
