//! A certificate authority for tests, and a folder for its files.
#![allow(dead_code, unreachable_pub, clippy::unwrap_used, reason = "each test binary uses a part")]

use std::path::{Path, PathBuf};

use rcgen::{
    BasicConstraints, CertificateParams, CertificateRevocationListParams, CertifiedIssuer, DnType,
    ExtendedKeyUsagePurpose, IsCa, KeyIdMethod, KeyPair, KeyUsagePurpose, RevokedCertParams, SerialNumber,
    date_time_ymd,
};

pub struct Authority(CertifiedIssuer<'static, KeyPair>);

/// A certificate and its key, as PEM.
#[derive(Clone)]
pub struct Pair {
    pub cert: String,
    pub key: String,
}

/// What is not as usual about a certificate.
pub type Change = fn(&mut CertificateParams);

/// Its time is over.
pub fn expired(params: &mut CertificateParams) {
    params.not_before = date_time_ymd(2020, 1, 1);
    params.not_after = date_time_ymd(2021, 1, 1);
}

/// It may sign others.
pub fn ca(params: &mut CertificateParams) {
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
}

/// Only for servers.
pub fn server_only(params: &mut CertificateParams) {
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
}

/// It says that it may not sign others.
pub fn no_ca(params: &mut CertificateParams) {
    params.is_ca = IsCa::ExplicitNoCa;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
}

/// It may sign something, but no certificates.
pub fn signs_no_certificates(params: &mut CertificateParams) {
    params.key_usages = vec![KeyUsagePurpose::CrlSign];
}

pub fn as_usual(_: &mut CertificateParams) {}

fn params(common_name: &str, names: &[&str], serial: u64, change: Change) -> CertificateParams {
    let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
    let mut params = CertificateParams::new(names).unwrap();
    params.distinguished_name.remove(DnType::CommonName);
    params.distinguished_name.push(DnType::CommonName, common_name);
    params.serial_number = Some(SerialNumber::from(serial));
    params.extended_key_usages =
        vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
    change(&mut params);
    params
}

/// A certificate that signed itself.
pub fn self_signed(common_name: &str, names: &[&str], change: Change) -> Pair {
    let key = KeyPair::generate().unwrap();
    let cert = params(common_name, names, 9, change).self_signed(&key).unwrap();
    Pair { cert: cert.pem(), key: key.serialize_pem() }
}

impl Authority {
    pub fn new(name: &str) -> Authority {
        Authority::changed(name, as_usual)
    }

    /// One that has something unusual about it.
    pub fn changed(name: &str, change: Change) -> Authority {
        let mut own = params(name, &[], 1, ca);
        own.extended_key_usages.clear();
        own.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        change(&mut own);
        Authority(CertifiedIssuer::self_signed(own, KeyPair::generate().unwrap()).unwrap())
    }

    /// An authority below this one.
    pub fn below(&self, name: &str) -> Authority {
        let own = params(name, &[], 2, ca);
        Authority(CertifiedIssuer::signed_by(own, KeyPair::generate().unwrap(), &self.0).unwrap())
    }

    pub fn pem(&self) -> String {
        self.0.pem()
    }

    pub fn pair(&self, common_name: &str, names: &[&str], serial: u64, change: Change) -> Pair {
        let key = KeyPair::generate().unwrap();
        let cert = params(common_name, names, serial, change).signed_by(&key, &self.0).unwrap();
        Pair { cert: cert.pem(), key: key.serialize_pem() }
    }

    /// A list of revoked numbers, whose own time is over. PEM, and DER.
    pub fn revoke(&self, serials: &[u64]) -> (String, Vec<u8>) {
        let revoked = |serial: &u64| RevokedCertParams {
            serial_number: SerialNumber::from(*serial),
            revocation_time: date_time_ymd(2020, 1, 1),
            reason_code: None,
            invalidity_date: None,
        };
        let list = CertificateRevocationListParams {
            this_update: date_time_ymd(2020, 1, 1),
            next_update: date_time_ymd(2021, 1, 1),
            crl_number: SerialNumber::from(1),
            issuing_distribution_point: None,
            revoked_certs: serials.iter().map(revoked).collect(),
            key_identifier_method: KeyIdMethod::Sha256,
        };
        let list = list.signed_by(&self.0).unwrap();
        (list.pem().unwrap(), list.der().to_vec())
    }
}

/// A folder for files, gone with the test.
pub struct Files(PathBuf);

impl Files {
    pub fn new(name: &str) -> Files {
        let path = std::env::temp_dir().join(format!("trilith-tls-{name}-{}", std::process::id()));
        let _ = std::fs::remove_dir_all(&path);
        std::fs::create_dir_all(&path).unwrap();
        Files(path)
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }

    /// Puts a file there whole, as those do who rotate certificates with care.
    pub fn put(&self, name: &str, content: impl AsRef<[u8]>) -> PathBuf {
        let (path, temporary) = (self.path(name), self.path("temporary"));
        std::fs::write(&temporary, content).unwrap();
        std::fs::rename(&temporary, &path).unwrap();
        path
    }

    /// Puts `NAME.crt` and `NAME.key`.
    pub fn pair(&self, name: &str, pair: &Pair) -> (PathBuf, PathBuf) {
        (self.put(&format!("{name}.crt"), &pair.cert), self.put(&format!("{name}.key"), &pair.key))
    }

    pub fn folder(&self) -> &Path {
        &self.0
    }
}

impl Drop for Files {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}
