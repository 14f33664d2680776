//! What a certificate says of itself, and whether it is good for a host.

use std::net::IpAddr;

use rustls::CertificateError;
use rustls::pki_types::{CertificateDer, UnixTime};
use x509_parser::prelude::{FromDer, GeneralName, X509Certificate, X509Version};

/// The parts of a certificate that etcd's rules ask for.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Facts {
    /// The last common name of its subject, or empty.
    pub common_name: String,
    /// Addresses that it is good for.
    pub ip_addresses: Vec<IpAddr>,
    /// Names that it is good for, as they stand there.
    pub dns_names: Vec<String>,
    /// Its number, without leading zeros.
    pub serial: Vec<u8>,
    /// It may sign others, or has a version too old to say so: it is checked by rules of its own.
    pub unusual: bool,
}

impl Facts {
    /// Reads a certificate.
    ///
    /// # Errors
    /// It is none.
    pub fn of(der: &CertificateDer<'_>) -> Result<Facts, CertificateError> {
        Ok(Facts::from_parsed(&parse(der)?))
    }

    fn from_parsed(parsed: &X509Certificate<'_>) -> Facts {
        let names = parsed.subject().iter_common_name().filter_map(|name| name.as_str().ok());
        let mut facts = Facts {
            common_name: names.last().unwrap_or_default().to_owned(),
            serial: without_zeros(parsed.raw_serial()),
            unusual: parsed.is_ca() || parsed.version() != X509Version::V3,
            ..Facts::default()
        };
        let alternatives = parsed.subject_alternative_name().ok().flatten();
        for name in alternatives.iter().flat_map(|names| &names.value.general_names) {
            match name {
                GeneralName::DNSName(name) => facts.dns_names.push((*name).to_owned()),
                GeneralName::IPAddress(bytes) => facts.ip_addresses.extend(ip_of(bytes)),
                _ => {}
            }
        }
        facts
    }

    /// Whether the certificate is good for an address (with or without brackets) or a name. A star stands for the
    /// first label of a name; the common name never counts.
    pub fn is_for(&self, host: &str) -> bool {
        let bare = host.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')).unwrap_or(host);
        match bare.parse::<IpAddr>() {
            Ok(ip) => self.ip_addresses.iter().any(|own| own.to_canonical() == ip.to_canonical()),
            Err(_) => self.dns_names.iter().any(|pattern| matches(pattern, host)),
        }
    }
}

/// Whether a pattern of a certificate has a name in it.
fn matches(pattern: &str, name: &str) -> bool {
    let name = name.strip_suffix('.').unwrap_or(name);
    if name.is_empty() || name.contains('*') {
        return false;
    }
    let rest_is = |rest: &str| {
        name.split_once('.').is_some_and(|(first, tail)| !first.is_empty() && tail.eq_ignore_ascii_case(rest))
    };
    match pattern.strip_prefix("*.") {
        Some(rest) => !rest.is_empty() && !rest.contains('*') && rest_is(rest),
        None => pattern.eq_ignore_ascii_case(name),
    }
}

fn ip_of(bytes: &[u8]) -> Option<IpAddr> {
    match bytes.len() {
        4 => <[u8; 4]>::try_from(bytes).ok().map(IpAddr::from),
        16 => <[u8; 16]>::try_from(bytes).ok().map(IpAddr::from),
        _ => None,
    }
}

/// Reads a certificate of which nothing is left over.
pub(crate) fn parse<'a>(der: &'a CertificateDer<'_>) -> Result<X509Certificate<'a>, CertificateError> {
    match X509Certificate::from_der(der) {
        Ok(([], parsed)) => Ok(parsed),
        _ => Err(CertificateError::BadEncoding),
    }
}

/// Whether a certificate that is trusted may vouch for others: as in Go, one of version 3 has to say so.
pub(crate) fn may_sign(authority: &X509Certificate<'_>) -> bool {
    let usage = authority.key_usage();
    let usage_allows = usage.is_ok_and(|usage| usage.is_none_or(|usage| usage.value.key_cert_sign()));
    usage_allows && (authority.is_ca() || authority.version() != X509Version::V3)
}

/// A certificate counts between its two times only.
pub(crate) fn in_time(certificate: &X509Certificate<'_>, now: UnixTime) -> Result<(), CertificateError> {
    let now = i64::try_from(now.as_secs()).unwrap_or(i64::MAX);
    let validity = certificate.validity();
    if now < validity.not_before.timestamp() {
        return Err(CertificateError::NotValidYet);
    }
    if now > validity.not_after.timestamp() {
        return Err(CertificateError::Expired);
    }
    Ok(())
}

pub(crate) fn without_zeros(bytes: &[u8]) -> Vec<u8> {
    let zeros = bytes.iter().take_while(|byte| **byte == 0).count();
    bytes[zeros..].to_vec()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts() {
        let facts = Facts {
            ip_addresses: vec!["10.0.0.1".parse().unwrap(), "::1".parse().unwrap()],
            dns_names: vec!["a.example.com".into(), "*.b.example".into(), "*".into(), "*.*.c".into()],
            common_name: "cn.example".into(),
            ..Facts::default()
        };
        for good in
            ["10.0.0.1", "::1", "[::1]", "::ffff:10.0.0.1", "A.example.COM", "a.example.com.", "x.b.example"]
        {
            assert!(facts.is_for(good), "{good}");
        }
        let bad =
            ["10.0.0.2", "b.example", "x.y.b.example", ".b.example", "cn.example", "", "x", "*.b.example"];
        for host in bad.into_iter().chain(["a.example.com..", "x.y.c"]) {
            assert!(!facts.is_for(host), "{host}");
        }
    }
}
