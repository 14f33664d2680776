//! Certificates that rustls refuses whoever signed them, and etcd takes: one that is itself an authority (such as a lone
//! self-signed one that serves as its own), one of version 1, which has no extensions, and one that stands among the
//! authorities itself without being one.
//!
//! They are taken when an authority has signed them directly or is the same certificate. Chains over others in between
//! are not tried. What is not known for certain to be harmless is refused.

use rustls::CertificateError;
use rustls::pki_types::{CertificateDer, UnixTime};
use x509_parser::prelude::{ParsedExtension, X509Certificate};

use crate::certificate::{in_time, may_sign, parse};
use crate::verify::Purpose;

/// Checks a certificate against authorities alone.
pub(crate) fn check(
    der: &CertificateDer<'_>,
    authorities: &[CertificateDer<'static>],
    purpose: Purpose,
    now: UnixTime,
) -> Result<(), CertificateError> {
    let certificate = parse(der)?;
    in_time(&certificate, now)?;
    extensions(&certificate, purpose)?;
    if authorities.iter().any(|authority| authority.as_ref() == der.as_ref()) {
        return Ok(());
    }
    let signed_by = |authority: &CertificateDer<'_>| {
        parse(authority).is_ok_and(|authority| {
            authority.subject().as_raw() == certificate.issuer().as_raw()
                && in_time(&authority, now).is_ok()
                && may_sign_all(&authority)
                && certificate.verify_signature(Some(authority.public_key())).is_ok()
        })
    };
    if authorities.iter().any(signed_by) { Ok(()) } else { Err(CertificateError::UnknownIssuer) }
}

/// Whether each extension that must be understood is, and the certificate may be used so.
fn extensions(certificate: &X509Certificate<'_>, purpose: Purpose) -> Result<(), CertificateError> {
    for extension in certificate.extensions() {
        match extension.parsed_extension() {
            ParsedExtension::ExtendedKeyUsage(usage) => {
                let named = match purpose {
                    Purpose::Client => usage.client_auth,
                    Purpose::Server => usage.server_auth,
                };
                if !named && !usage.any {
                    return Err(CertificateError::InvalidPurpose);
                }
            }
            ParsedExtension::BasicConstraints(_)
            | ParsedExtension::KeyUsage(_)
            | ParsedExtension::SubjectAlternativeName(_) => {}
            _ if extension.critical => return Err(CertificateError::UnhandledCriticalExtension),
            _ => {}
        }
    }
    Ok(())
}

/// Whether it may sign others, without a rule about what.
fn may_sign_all(authority: &X509Certificate<'_>) -> bool {
    let rules = authority.extensions().iter().any(|extension| {
        let known = matches!(
            extension.parsed_extension(),
            ParsedExtension::BasicConstraints(_) | ParsedExtension::KeyUsage(_)
        );
        matches!(extension.parsed_extension(), ParsedExtension::NameConstraints(_))
            || (extension.critical && !known)
    });
    may_sign(authority) && !rules
}
