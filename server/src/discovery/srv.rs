//! Members by DNS: the SRV records `_etcd-server-ssl._tcp` and `_etcd-server._tcp` of a domain.
//!
//! A record whose target has the address of one of this member's peer URLs is this member's own, and gets its name; the
//! others are numbered. The lookups block.

use std::net::SocketAddr;

use trilith_dns::{LookupError, Resolver};

use super::{Members, text_of};
use crate::config::cluster_of;
use crate::config::discovery::Srv;
use crate::config::url::{self, Url};

/// Why the records give no cluster. The texts are etcd's.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SrvError {
    /// This member's own URL has no address.
    #[error("error setting up initial cluster: {0}")]
    Own(LookupError),
    /// What came of the service with TLS, and of the one without.
    #[error("error setting up initial cluster: {0}")]
    NotFound(String),
    /// The records name no usable cluster.
    #[error("error setting up initial cluster: {0}")]
    Bad(String),
    /// This member is not among them.
    #[error("error setting up initial cluster: cannot find local etcd member {0:?} in SRV records")]
    NotListed(String),
    /// A URL of this member's is in no record.
    #[error("--initial-advertise-peer-urls has {missing} but missing from --initial-cluster={listed}")]
    UrlNotListed {
        /// The URLs that no record has.
        missing: String,
        /// The records, as a list of members.
        listed: String,
    },
}

/// The cluster that a domain's records describe, for the member with this name and these peer URLs.
///
/// # Errors
/// There are no records, or they do not fit this member.
pub fn cluster_of_srv(
    resolver: &Resolver,
    srv: &Srv,
    name: &str,
    advertised: &[Url],
) -> Result<Members, SrvError> {
    let mut own = Vec::new();
    for url in advertised {
        let Some((host, port)) = url.host_port() else { continue };
        let address = address_of(resolver, host, port).map_err(SrvError::Own)?;
        own.push((address, url));
    }
    let mut listed = Vec::new();
    let mut errors = Vec::new();
    for (scheme, service) in [("https", "etcd-server-ssl"), ("http", "etcd-server")] {
        let suffix = if srv.service_name.is_empty() { "" } else { "-" };
        let service = format!("{service}{suffix}{}", srv.service_name);
        let outcome = of_service(resolver, srv, name, &own, scheme, &service);
        let (found, error) = match outcome {
            Ok(found) => (found, None),
            Err(error) => {
                (Vec::new(), Some(format!("error querying DNS SRV records for _{service} {error}")))
            }
        };
        listed.extend(found);
        let (cluster, urls) = (listed.join(","), url::join(advertised));
        log::info!(
            "service-scheme" = scheme, "service-name" = service.as_str(), "server-name" = name,
            "discovery-srv" = srv.domain.as_str(), "advertise-peer-urls" = urls.as_str(),
            "found-cluster" = cluster.as_str(), error = error.as_deref().unwrap_or_default();
            "get cluster for {} SRV", if scheme == "https" { "etcd-server-ssl" } else { "etcd-server" }
        );
        errors.extend(error);
    }
    if !errors.is_empty() {
        let error = errors.join("\n");
        log::warn!(error = error.as_str(); "failed to resolve during SRV discovery");
    }
    if listed.is_empty() {
        return Err(SrvError::NotFound(errors.join("\n")));
    }
    for node in &listed {
        log::info!(node = node.as_str(); "got bootstrap from DNS for etcd-server");
    }
    let members = cluster_of(&listed.join(",")).map_err(SrvError::Bad)?;
    check(resolver, &members, name, &own)?;
    Ok(members)
}

/// `name=url` for each record of one service.
fn of_service(
    resolver: &Resolver,
    srv: &Srv,
    name: &str,
    own: &[(SocketAddr, &Url)],
    scheme: &str,
    service: &str,
) -> Result<Vec<String>, String> {
    let records = resolver.srv(service, &srv.domain).map_err(|error| error.to_string())?;
    let mut found = Vec::new();
    let mut last_error = None;
    let mut others = 0;
    for record in records {
        let host_port = format!("{}:{}", record.target, record.port);
        let address = match address_of(resolver, &record.target, record.port) {
            Ok(address) => address,
            Err(error) => {
                last_error = Some(error.to_string());
                continue;
            }
        };
        let mine = own.iter().find(|(own, _)| *own == address).map(|(_, url)| *url);
        match mine {
            Some(url) if url.scheme != scheme => {
                last_error = Some(format!(
                    "bootstrap at {scheme}://{host_port} from DNS for {service} has scheme mismatch with expected peer {url}"
                ));
            }
            Some(_) => found.push(format!("{name}={scheme}://{host_port}")),
            None => {
                found.push(format!("{others}={scheme}://{host_port}"));
                others += 1;
            }
        }
    }
    match last_error {
        Some(error) if found.is_empty() => Err(error),
        _ => Ok(found),
    }
}

/// This member is there, with all its URLs, and no URL is there twice.
fn check(
    resolver: &Resolver,
    members: &Members,
    name: &str,
    own: &[(SocketAddr, &Url)],
) -> Result<(), SrvError> {
    let Some((_, mine)) = members.iter().find(|(other, _)| other == name) else {
        return Err(SrvError::NotListed(name.to_owned()));
    };
    let mut urls: Vec<&Url> = members.iter().flat_map(|(_, urls)| urls).collect();
    let count = urls.len();
    urls.sort();
    urls.dedup();
    if urls.len() < count {
        return Err(SrvError::Bad(format!("initial cluster {} has duplicate url", text_of(members))));
    }
    let mut there = Vec::new();
    for url in mine {
        if let Some((host, port)) = url.host_port() {
            there.push(address_of(resolver, host, port).map_err(SrvError::Own)?);
        }
    }
    let missing: Vec<String> =
        own.iter().filter(|(address, _)| !there.contains(address)).map(|(_, url)| url.to_string()).collect();
    if missing.is_empty() {
        return Ok(());
    }
    Err(SrvError::UrlNotListed { missing: missing.join(","), listed: text_of(members) })
}

/// The address that a connection would go to.
fn address_of(resolver: &Resolver, host: &str, port: u16) -> Result<SocketAddr, LookupError> {
    let addresses = resolver.addresses(host)?;
    let first = addresses.first().ok_or_else(|| LookupError::BadName { name: host.to_owned() })?;
    Ok(SocketAddr::new(*first, port))
}

#[cfg(test)]
mod tests {
    use trilith_dns::testing::{Record, serve};

    use super::*;

    const DOMAIN: &str = "example.com";

    fn record(service: &str, port: u16, target: &str) -> (String, Record) {
        (format!("_{service}._tcp.{DOMAIN}"), Record::Srv(0, 0, port, target.to_owned()))
    }

    fn host(name: &str, ip: &str) -> (String, Record) {
        (name.to_owned(), Record::Address(ip.parse().unwrap()))
    }

    fn zone(mut records: Vec<(String, Record)>) -> Resolver {
        records.extend([
            host("a.example.com", "10.0.0.1"),
            host("b.example.com", "10.0.0.2"),
            host("c.example.com", "10.0.0.3"),
        ]);
        Resolver::of_servers(vec![serve(records)])
    }

    fn discover(resolver: &Resolver, service_name: &str, name: &str, urls: &str) -> Result<String, String> {
        let srv = Srv { domain: DOMAIN.to_owned(), service_name: service_name.to_owned() };
        let found = cluster_of_srv(resolver, &srv, name, &url::parse_list(urls).unwrap());
        found.map(|members| text_of(&members)).map_err(|error| error.to_string())
    }

    #[test]
    fn a_member_finds_itself_by_its_address() {
        let resolver = zone(vec![
            record("etcd-server", 2380, "a.example.com"),
            record("etcd-server", 2380, "b.example.com"),
            record("etcd-server", 2381, "a.example.com"),
        ]);
        // By name and by address; the numbers of the others depend on the order of the records.
        for urls in ["http://a.example.com:2380", "http://10.0.0.1:2380"] {
            let found = discover(&resolver, "", "me", urls).unwrap();
            assert!(found.contains("me=http://a.example.com:2380"), "{found}");
            let others =
                found.split(',').filter_map(|part| part.split_once('=')).filter(|(name, _)| *name != "me");
            let (names, mut urls): (Vec<_>, Vec<_>) = others.unzip();
            urls.sort_unstable();
            assert_eq!(names, ["0", "1"]);
            assert_eq!(urls, ["http://a.example.com:2381", "http://b.example.com:2380"]);
        }
        let both = discover(&resolver, "", "me", "http://10.0.0.1:2380,http://10.0.0.1:2381").unwrap();
        assert_eq!(
            both,
            "0=http://b.example.com:2380,me=http://a.example.com:2380,me=http://a.example.com:2381"
        );
    }

    #[test]
    fn services_with_and_without_tls_and_with_a_name_of_their_own() {
        let resolver = zone(vec![
            record("etcd-server-ssl-x", 1, "a.example.com"),
            record("etcd-server-x", 2, "b.example.com"),
        ]);
        let found = discover(&resolver, "x", "me", "https://10.0.0.1:1").unwrap();
        assert_eq!(found, "0=http://b.example.com:2,me=https://a.example.com:1");
        let error = discover(&resolver, "", "me", "https://10.0.0.1:1").unwrap_err();
        assert!(
            error.starts_with(
                "error setting up initial cluster: error querying DNS SRV records for _etcd-server-ssl lookup \
                 _etcd-server-ssl._tcp.example.com on 127.0.0.1:"
            ) && error.contains(": no such host\nerror querying DNS SRV records for _etcd-server lookup _etcd-server._tcp"),
            "{error}"
        );
    }

    #[test]
    fn records_that_do_not_fit() {
        let resolver = zone(vec![
            record("etcd-server", 1, "a.example.com"),
            record("etcd-server", 1, "gone.example.com"),
            record("etcd-server", 2, "b.example.com"),
        ]);
        for (urls, error) in [
            (
                "http://c.example.com:1",
                "error setting up initial cluster: cannot find local etcd member \"me\" in SRV records",
            ),
            (
                "https://a.example.com:1",
                "error setting up initial cluster: cannot find local etcd member \"me\" in SRV records",
            ),
            (
                "http://10.0.0.1:1,http://10.0.0.1:9",
                "--initial-advertise-peer-urls has http://10.0.0.1:9 but missing from --initial-cluster=0=http://b.example.com:2,me=http://a.example.com:1",
            ),
        ] {
            assert_eq!(discover(&resolver, "", "me", urls).unwrap_err(), error);
        }
        let error = discover(&resolver, "", "me", "http://gone.example.com:1").unwrap_err();
        assert!(
            error.starts_with("error setting up initial cluster: lookup gone.example.com on "),
            "{error}"
        );
        let alone = zone(vec![record("etcd-server", 1, "a.example.com")]);
        let error = discover(&alone, "", "me", "https://a.example.com:1").unwrap_err();
        assert!(
            error.ends_with(
                "bootstrap at http://a.example.com:1 from DNS for etcd-server has scheme mismatch with expected peer \
                 https://a.example.com:1"
            ),
            "{error}"
        );
    }
}
