//! Whether a certificate that the other side shows is good: its chain, then etcd's rules about names and revocations.

use std::collections::HashSet;
use std::sync::Arc;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::verify_server_cert_signed_by_trust_anchor;
use rustls::crypto::{CryptoProvider, WebPkiSupportedAlgorithms};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::ParsedCertificate;
use rustls::server::WebPkiClientVerifier;
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::{
    CertificateError, DigitallySignedStruct, DistinguishedName, Error, PeerMisbehaved, RootCertStore,
    SignatureScheme,
};

use crate::certificate::{Facts, parse};
use crate::direct;
use crate::files::Authorities;

/// What a certificate is shown for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Purpose {
    Client,
    Server,
}

/// Rules beside the chain.
#[derive(Debug, Clone, Default)]
pub(crate) struct Rules {
    /// Only these common names, if any is named.
    pub(crate) common_names: Vec<String>,
    /// Only certificates that are good for one of these, if any is named.
    pub(crate) hostnames: Vec<String>,
    /// Numbers of certificates, in the whole of the shown chain.
    pub(crate) revoked: HashSet<Vec<u8>>,
}

impl Rules {
    fn check(&self, own: &Facts, others: &[CertificateDer<'_>]) -> Result<(), CertificateError> {
        let is_revoked = |facts: &Facts| self.revoked.contains(&facts.serial);
        if is_revoked(own) {
            return Err(CertificateError::Revoked);
        }
        // Without a list nothing is read: a strange certificate that nobody needs does no harm.
        for other in others.iter().filter(|_| !self.revoked.is_empty()) {
            if is_revoked(&Facts::of(other)?) {
                return Err(CertificateError::Revoked);
            }
        }
        let allowed = if !self.common_names.is_empty() {
            self.common_names.contains(&own.common_name)
        } else {
            self.hostnames.is_empty() || self.hostnames.iter().any(|host| own.is_for(host))
        };
        // Names that a client must have are checked nowhere else: words.rs knows the error by that.
        if allowed { Ok(()) } else { Err(CertificateError::NotValidForName) }
    }
}

/// Checks clients.
#[derive(Debug)]
pub(crate) struct Clients {
    /// By all authorities that may vouch for others; None: there are none.
    chains: Option<Arc<dyn ClientCertVerifier>>,
    provider: Arc<CryptoProvider>,
    authorities: Authorities,
    rules: Rules,
    algorithms: WebPkiSupportedAlgorithms,
}

impl Clients {
    pub(crate) fn new(
        authorities: Authorities,
        rules: Rules,
        provider: Arc<CryptoProvider>,
    ) -> Result<Clients, crate::Error> {
        if authorities.certificates.is_empty() {
            return Err(crate::Error::NoAuthorities);
        }
        let algorithms = provider.signature_verification_algorithms;
        let chains = chains_to(authorities.roots.clone(), &provider);
        Ok(Clients { chains, provider, authorities, rules, algorithms })
    }

    fn check_chain(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<(), Error> {
        let in_time = self.authorities.roots_in_time(now).map(|roots| chains_to(roots, &self.provider));
        let chains = in_time.as_ref().unwrap_or(&self.chains);
        let chains = chains.as_ref().ok_or(CertificateError::UnknownIssuer)?;
        chains.verify_client_cert(end_entity, intermediates, now).map(drop)
    }
}

fn chains_to(roots: RootCertStore, provider: &Arc<CryptoProvider>) -> Option<Arc<dyn ClientCertVerifier>> {
    // The only error without lists of revoked certificates is that there is no root.
    WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider.clone()).build().ok()
}

impl ClientCertVerifier for Clients {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        self.chains.as_ref().map_or(&[], |chains| chains.root_hint_subjects())
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        let facts = Facts::of(end_entity)?;
        if facts.unusual || self.authorities.has(end_entity) {
            direct::check(end_entity, &self.authorities.certificates, Purpose::Client, now)?;
        } else {
            self.check_chain(end_entity, intermediates, now)?;
        }
        self.rules.check(&facts, intermediates)?;
        Ok(ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        tls12_signature(&self.algorithms, message, cert, dss)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        tls13_signature(&self.algorithms, message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}

/// Checks servers.
#[derive(Debug)]
pub(crate) struct Servers {
    /// None: any certificate will do, as long as the server has its key.
    pub(crate) authorities: Option<Authorities>,
    pub(crate) rules: Rules,
    pub(crate) algorithms: WebPkiSupportedAlgorithms,
}

impl ServerCertVerifier for Servers {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let Some(authorities) = &self.authorities else { return Ok(ServerCertVerified::assertion()) };
        let facts = Facts::of(end_entity)?;
        if facts.unusual || authorities.has(end_entity) {
            direct::check(end_entity, &authorities.certificates, Purpose::Server, now)?;
        } else {
            let in_time = authorities.roots_in_time(now);
            verify_server_cert_signed_by_trust_anchor(
                &ParsedCertificate::try_from(end_entity)?,
                in_time.as_ref().unwrap_or(&authorities.roots),
                intermediates,
                now,
                self.algorithms.all,
            )?;
        }
        if !facts.is_for(&server_name.to_str()) {
            let addresses = facts.ip_addresses.iter().map(ToString::to_string);
            let presented = facts.dns_names.iter().cloned().chain(addresses).collect();
            let expected = server_name.to_owned();
            return Err(CertificateError::NotValidForNameContext { expected, presented }.into());
        }
        self.rules.check(&facts, intermediates)?;
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        tls12_signature(&self.algorithms, message, cert, dss)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        tls13_signature(&self.algorithms, message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}

fn tls12_signature(
    algorithms: &WebPkiSupportedAlgorithms,
    message: &[u8],
    cert: &CertificateDer<'_>,
    dss: &DigitallySignedStruct,
) -> Result<HandshakeSignatureValid, Error> {
    signature(algorithms, usize::MAX, message, cert, dss)
}

/// TLS 1.3 binds a scheme to one curve: the first of what stands for it.
fn tls13_signature(
    algorithms: &WebPkiSupportedAlgorithms,
    message: &[u8],
    cert: &CertificateDer<'_>,
    dss: &DigitallySignedStruct,
) -> Result<HandshakeSignatureValid, Error> {
    let in_tls13 = !matches!(
        dss.scheme,
        SignatureScheme::RSA_PKCS1_SHA256
            | SignatureScheme::RSA_PKCS1_SHA384
            | SignatureScheme::RSA_PKCS1_SHA512
    );
    if !in_tls13 {
        return Err(PeerMisbehaved::SignedHandshakeWithUnadvertisedSigScheme.into());
    }
    signature(algorithms, 1, message, cert, dss)
}

/// rustls's own check reads the certificate in a way that knows version 3 only.
fn signature(
    algorithms: &WebPkiSupportedAlgorithms,
    at_most: usize,
    message: &[u8],
    cert: &CertificateDer<'_>,
    dss: &DigitallySignedStruct,
) -> Result<HandshakeSignatureValid, Error> {
    let possible = algorithms.mapping.iter().find(|(scheme, _)| *scheme == dss.scheme);
    let Some((_, possible)) = possible else {
        return Err(PeerMisbehaved::SignedHandshakeWithUnadvertisedSigScheme.into());
    };
    let parsed = parse(cert)?;
    let key = parsed.public_key();
    let signed = possible.iter().take(at_most).any(|algorithm| {
        is_algorithm_of(algorithm.public_key_alg_id().as_ref(), &key.algorithm)
            && algorithm.verify_signature(&key.subject_public_key.data, message, dss.signature()).is_ok()
    });
    if signed { Ok(HandshakeSignatureValid::assertion()) } else { Err(CertificateError::BadSignature.into()) }
}

/// Whether an algorithm's identifier, the inside of its sequence, is that of a key: the object, then its parameters.
fn is_algorithm_of(id: &[u8], key: &x509_parser::x509::AlgorithmIdentifier<'_>) -> bool {
    let object = key.algorithm.as_bytes();
    let Some(rest) =
        id.strip_prefix(&[6]).and_then(|rest| rest.strip_prefix(&[u8::try_from(object.len()).unwrap_or(0)]))
    else {
        return false;
    };
    let Some(parameters) = rest.strip_prefix(object) else { return false };
    let own = key.parameters.as_ref().map(|own| (own.header.tag().0, own.data));
    match (parameters, own) {
        ([], None) => true,
        ([tag, len, value @ ..], Some((own_tag, own))) => {
            u32::from(*tag) == own_tag && usize::from(*len) == own.len() && value == own
        }
        _ => false,
    }
}
