//! The files: what is in them, and whether they have changed.

use std::collections::HashSet;
use std::path::{Path, PathBuf};

use rustls::RootCertStore;
use rustls::crypto::CryptoProvider;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, CertificateRevocationListDer, PrivateKeyDer, UnixTime};
use rustls::sign::CertifiedKey;
use x509_parser::prelude::{CertificateRevocationList, FromDer};

use crate::Error;
use crate::certificate::{in_time, may_sign, parse, without_zeros};

/// Where systems keep the authorities that everybody trusts; the first that is there counts.
const SYSTEM_AUTHORITIES: [&str; 6] = [
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/ssl/ca-bundle.pem",
    "/etc/pki/tls/cacert.pem",
    "/etc/pki/ca-trust/extracted/pem/tls-ca-bundle.pem",
    "/etc/ssl/cert.pem",
];

fn read(path: &Path) -> Result<Vec<u8>, Error> {
    std::fs::read(path).map_err(|source| Error::Open { path: path.to_owned(), source })
}

fn wrong(path: &Path, what: impl ToString) -> Error {
    Error::File { path: path.to_owned(), what: what.to_string() }
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, Error> {
    let bytes = read(path)?;
    let found: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&bytes).collect();
    let found = found.map_err(|error| wrong(path, error))?;
    if found.is_empty() {
        return Err(wrong(path, "there is no certificate in it"));
    }
    if found.iter().any(|certificate| parse(certificate).is_err()) {
        return Err(wrong(path, "what stands there as a certificate is none"));
    }
    Ok(found)
}

/// A certificate with those between it and its authority, and its key.
pub(crate) fn key_pair(cert: &Path, key: &Path, provider: &CryptoProvider) -> Result<CertifiedKey, Error> {
    let chain = certificates(cert)?;
    let bytes = read(key)?;
    let der = PrivateKeyDer::from_pem_slice(&bytes).map_err(|error| wrong(key, error))?;
    let cannot = |why: &dyn std::fmt::Display| {
        wrong(key, format!("the key of the certificate {} cannot be used: {why}", cert.display()))
    };
    let own = provider.key_provider.load_private_key(der).map_err(|error| cannot(&error))?;
    // rustls's own comparison reads certificates of version 3 only.
    let shown = parse(&chain[0]).map_err(|error| wrong(cert, format!("{error:?}")))?;
    let fits = own.public_key().is_some_and(|public| public.as_ref() == shown.public_key().raw);
    if !fits {
        return Err(cannot(&"it belongs to another certificate"));
    }
    Ok(CertifiedKey::new(chain, own))
}

/// Authorities, as certificates and as rustls has them.
#[derive(Debug, Clone)]
pub(crate) struct Authorities {
    pub(crate) certificates: Vec<CertificateDer<'static>>,
    /// Those of them that may vouch for others. rustls looks at neither that nor their time.
    pub(crate) roots: RootCertStore,
}

impl Authorities {
    fn new(certificates: Vec<CertificateDer<'static>>) -> Authorities {
        let signs = |der: &&CertificateDer<'_>| parse(der).is_ok_and(|parsed| may_sign(&parsed));
        let roots = roots(certificates.iter().filter(signs));
        Authorities { certificates, roots }
    }

    /// Whether a certificate is one of them.
    pub(crate) fn has(&self, der: &CertificateDer<'_>) -> bool {
        self.certificates.iter().any(|own| own.as_ref() == der.as_ref())
    }

    /// Those that may vouch for others now, where that is not all that ever may.
    pub(crate) fn roots_in_time(&self, now: UnixTime) -> Option<RootCertStore> {
        let parsed = self.certificates.iter().filter_map(|der| Some((der, parse(der).ok()?)));
        let signing: Vec<_> = parsed.filter(|(_, parsed)| may_sign(parsed)).collect();
        let good: Vec<_> = signing.iter().filter(|(_, parsed)| in_time(parsed, now).is_ok()).collect();
        (good.len() < signing.len()).then(|| roots(good.into_iter().map(|(der, _)| *der)))
    }
}

/// Those that rustls can use.
fn roots<'a>(certificates: impl Iterator<Item = &'a CertificateDer<'static>>) -> RootCertStore {
    let mut roots = RootCertStore::empty();
    roots.add_parsable_certificates(certificates.cloned());
    roots
}

/// The authorities of a file.
pub(crate) fn authorities(path: &Path) -> Result<Authorities, Error> {
    let certificates = certificates(path)?;
    let mut checked = RootCertStore::empty();
    for certificate in &certificates {
        checked.add(certificate.clone()).map_err(|error| wrong(path, error))?;
    }
    Ok(Authorities::new(certificates))
}

/// The authorities that the system trusts; none is no error. Those that rustls cannot use are passed over.
pub(crate) fn system_authorities() -> Authorities {
    let named = std::env::var_os("SSL_CERT_FILE").map(PathBuf::from);
    let usual = SYSTEM_AUTHORITIES.into_iter().map(PathBuf::from);
    let bytes = named.into_iter().chain(usual).find_map(|path| std::fs::read(path).ok()).unwrap_or_default();
    Authorities::new(CertificateDer::pem_slice_iter(&bytes).filter_map(Result::ok).collect())
}

/// The numbers of revoked certificates: as in etcd, whoever signed the list, and however old it is.
pub(crate) fn revoked(path: &Path) -> Result<HashSet<Vec<u8>>, Error> {
    let bytes = read(path)?;
    let lists: Vec<CertificateRevocationListDer<'_>> = if bytes.first() == Some(&0x30) {
        vec![CertificateRevocationListDer::from(bytes)]
    } else {
        let lists: Result<_, _> = CertificateRevocationListDer::pem_slice_iter(&bytes).collect();
        lists.map_err(|error| wrong(path, error))?
    };
    if lists.is_empty() {
        return Err(wrong(path, "there is no list of revoked certificates in it"));
    }
    let mut numbers = HashSet::new();
    for list in &lists {
        let Ok(([], list)) = CertificateRevocationList::from_der(list) else {
            return Err(wrong(path, "what stands there as a list of revoked certificates is none"));
        };
        numbers.extend(list.iter_revoked_certificates().map(|entry| without_zeros(entry.raw_serial())));
    }
    Ok(numbers)
}

/// What shows that a file was written anew: its time, length and number. None: it is not there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Stamp(Option<(i64, i64, u64, u64)>);

impl Stamp {
    pub(crate) fn of(path: &Path) -> Stamp {
        use std::os::unix::fs::MetadataExt;
        let found = std::fs::metadata(path).ok();
        Stamp(found.map(|found| (found.mtime(), found.mtime_nsec(), found.len(), found.ino())))
    }
}
