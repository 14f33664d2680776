//! Whether a certificate fits the address that its owner dials from, as etcd wants it.
//!
//! One that names neither addresses nor hosts fits all, and no other fits somebody at a unix socket, who has no address. Names are resolved, on threads that may block.

use std::net::IpAddr;

use trilith_tls::Facts;

/// Checks a certificate for an address; the text says why it does not fit.
pub(super) async fn check(facts: &Facts, from: Option<IpAddr>) -> Result<(), String> {
    let (addresses, names) = (&facts.ip_addresses, &facts.dns_names);
    if addresses.is_empty() && names.is_empty() {
        return Ok(());
    }
    let Some(from) = from.map(|from| from.to_canonical()) else {
        return Err("address @: missing port in address".to_owned());
    };
    if facts.is_for(&from.to_string()) {
        return Ok(());
    }
    if names.is_empty() {
        let addresses: Vec<_> = addresses.iter().map(ToString::to_string).collect();
        return Err(format!("x509: certificate is valid for {}, not {from}", addresses.join(", ")));
    }
    let own = names.clone();
    let found = tokio::task::spawn_blocking(move || is_one_of(from, &own)).await;
    match found {
        Ok(true) => Ok(()),
        Ok(false) => Err(format!("tls: {:?} does not match any of DNSNames {names:?}", from.to_string())),
        Err(error) => Err(error.to_string()),
    }
}

/// Whether the address has one of the names, or one of the names that are no patterns has the address.
fn is_one_of(from: IpAddr, names: &[String]) -> bool {
    let plain = names.iter().filter(|name| !name.starts_with("*."));
    let has_address = |name: &String| {
        dns_lookup::lookup_host(name).is_ok_and(|mut found| found.any(|ip| ip.to_canonical() == from))
    };
    if plain.clone().any(has_address) {
        return true;
    }
    // Without a name the resolver answers with the address itself, which ends in no name of a certificate.
    let Ok(name) = dns_lookup::lookup_addr(&from) else { return false };
    let name = name.trim_end_matches('.');
    let ends_in = |pattern: &String| {
        let end = pattern.strip_prefix('*').filter(|end| end.len() > 1);
        end.is_some_and(|end| name.len() > end.len() && name.ends_with(end))
    };
    plain.clone().any(|plain| plain == name) || names.iter().any(ends_in)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn addresses_and_names() {
        let facts = |ips: &[&str], names: &[&str]| Facts {
            ip_addresses: ips.iter().map(|ip| ip.parse().unwrap()).collect(),
            dns_names: names.iter().map(|name| (*name).to_owned()).collect(),
            ..Facts::default()
        };
        let ours: IpAddr = "127.0.0.1".parse().unwrap();
        for good in [
            facts(&[], &[]),
            facts(&["10.0.0.1", "127.0.0.1"], &[]),
            facts(&["10.0.0.1"], &["localhost"]),
            facts(&[], &["nowhere.invalid", "localhost"]),
        ] {
            assert_eq!(check(&good, Some(ours)).await, Ok(()), "{good:?}");
        }
        check(&facts(&[], &[]), None).await.unwrap();
        check(&facts(&["127.0.0.1"], &[]), None).await.unwrap_err();
        check(&facts(&["127.0.0.1"], &[]), "::ffff:127.0.0.1".parse().ok()).await.unwrap();
        for (bad, error) in [
            (facts(&["10.0.0.1"], &[]), "x509: certificate is valid for 10.0.0.1, not 127.0.0.1"),
            (
                facts(&["10.0.0.1"], &["nowhere.invalid", "*.example"]),
                "tls: \"127.0.0.1\" does not match any of DNSNames [\"nowhere.invalid\", \"*.example\"]",
            ),
            (facts(&[], &["*."]), "tls: \"127.0.0.1\" does not match any of DNSNames [\"*.\"]"),
        ] {
            assert_eq!(check(&bad, Some(ours)).await.unwrap_err(), error);
        }
    }
}
