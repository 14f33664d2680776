//! Endpoints by DNS: the SRV records `_etcd-client-ssl._tcp` and `_etcd-client._tcp` of a domain. The lookups block.

use trilith_dns::Resolver;

use crate::exit::Failure;
use crate::terminal::note;

/// The endpoints that a domain's records name, those with TLS first; without `insecure` those alone. `service_name` is
/// a suffix of the services' names; empty for none.
///
/// # Errors
/// Code 1: neither service has a record.
pub(crate) fn endpoints(
    resolver: &Resolver,
    domain: &str,
    service_name: &str,
    insecure: bool,
) -> Result<Vec<String>, Failure> {
    let suffix = if service_name.is_empty() { "" } else { "-" };
    let of = |scheme: &str, service: &str| {
        let found = resolver.srv(&format!("{service}{suffix}{service_name}"), domain)?;
        // As etcd shows them: with the dot that ends a full name.
        let urls = found.iter().map(|srv| format!("{scheme}://{}.:{}", srv.target, srv.port));
        Ok::<_, trilith_dns::LookupError>(urls.collect::<Vec<_>>())
    };
    let (secure, plain) = match (of("https", "etcd-client-ssl"), of("http", "etcd-client")) {
        (Err(secure), Err(plain)) => {
            return Err(Failure::error(format_args!("dns lookup errors: {secure} and {plain}")));
        }
        (secure, plain) => (secure.unwrap_or_default(), plain.unwrap_or_default()),
    };
    if insecure {
        return Ok([secure, plain].concat());
    }
    for endpoint in plain {
        note(format_args!("ignoring discovered insecure endpoint {endpoint:?}"));
    }
    Ok(secure)
}

#[cfg(test)]
mod tests {
    use trilith_dns::testing::{Record, serve};

    use super::*;

    #[test]
    fn records_are_endpoints() {
        let record = |service: &str, priority, port, target: &str| {
            (format!("_{service}._tcp.example.com"), Record::Srv(priority, 0, port, target.to_owned()))
        };
        let server = serve(vec![
            record("etcd-client", 1, 2379, "a.example.com"),
            record("etcd-client", 0, 2380, "b.example.com"),
            record("etcd-client-ssl", 0, 2381, "c.example.com"),
            record("etcd-client-x", 0, 2382, "d.example.com"),
        ]);
        let resolver = Resolver::of_servers(vec![server]);
        assert_eq!(
            endpoints(&resolver, "example.com", "", true).unwrap(),
            ["https://c.example.com.:2381", "http://b.example.com.:2380", "http://a.example.com.:2379"]
        );
        assert_eq!(endpoints(&resolver, "example.com", "", false).unwrap(), ["https://c.example.com.:2381"]);
        assert_eq!(endpoints(&resolver, "example.com", "x", true).unwrap(), ["http://d.example.com.:2382"]);
        assert!(endpoints(&resolver, "example.com", "x", false).unwrap().is_empty());
        let failure = endpoints(&resolver, "example.org", "", true).unwrap_err();
        assert_eq!(
            (failure.code, failure.text),
            (
                1,
                format!(
                    "dns lookup errors: lookup _etcd-client-ssl._tcp.example.org on {server}: no such host and lookup \
                     _etcd-client._tcp.example.org on {server}: no such host"
                )
            )
        );
    }
}
