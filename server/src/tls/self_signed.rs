//! The certificate of `--auto-tls` and `--peer-auto-tls`: made at the first start, used again at each later one.

use std::io::Write;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::Path;
use std::time::{Duration, SystemTime};

use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, KeyPair,
    KeyUsagePurpose,
};
use trilith_tls::Settings;

use crate::config::url::Url;

/// A certificate's last year has four digits.
const YEARS_MAX: u32 = 5000;
const YEAR: Duration = Duration::from_secs(365 * 24 * 60 * 60);

/// The settings of a port with the certificate and the key in `folder`, and nothing else that was said of certificates,
/// as in etcd. Makes `cert.pem` and `key.pem` when one of the two is not there, for the hosts that the port listens on
/// and so many years. Who dials with such a certificate cannot check those of others.
///
/// # Errors
/// With the file that cannot be written, or the number of years that is none.
pub fn self_signed(
    settings: Settings,
    folder: &Path,
    listen: &[Url],
    years: u32,
) -> Result<Settings, String> {
    if years == 0 {
        return Err("selfSignedCertValidity is invalid,it should be greater than 0".to_owned());
    }
    let (cert, key) = (folder.join("cert.pem"), folder.join("key.pem"));
    if !cert.exists() || !key.exists() {
        let hosts: Vec<&str> = listen.iter().filter_map(Url::host_port).map(|(host, _)| host).collect();
        write(
            folder,
            &cert,
            &key,
            make(&hosts, years).map_err(|error| format!("cannot make a certificate: {error}"))?,
        )?;
        let (folder, hosts) = (folder.display().to_string(), hosts.join(","));
        log::info!(folder = folder.as_str(), hosts = hosts.as_str(), years; "made a self-signed certificate");
    }
    let (limits, alpn) = (settings.limits, settings.alpn);
    Ok(Settings {
        cert_file: cert,
        key_file: key,
        insecure_skip_verify: true,
        limits,
        alpn,
        ..Settings::default()
    })
}

fn write(
    folder: &Path,
    cert: &Path,
    key: &Path,
    (cert_pem, key_pem): (String, String),
) -> Result<(), String> {
    let failed =
        |path: &Path, error: &dyn std::fmt::Display| format!("cannot make {}: {error}", path.display());
    std::fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(folder)
        .map_err(|error| failed(folder, &error))?;
    // Each is whole where it stands, whatever happens: a later start takes what it finds.
    for (path, text, mode) in [(key, key_pem, 0o600), (cert, cert_pem, 0o644)] {
        let new = path.with_extension("new");
        let made = std::fs::OpenOptions::new().write(true).create(true).truncate(true).mode(mode).open(&new);
        made.and_then(|mut file| {
            file.set_permissions(std::fs::Permissions::from_mode(mode))?;
            file.write_all(text.as_bytes())?;
            file.sync_all()?;
            std::fs::rename(&new, path)
        })
        .map_err(|error| failed(path, &error))?;
    }
    std::fs::File::open(folder)
        .and_then(|folder| folder.sync_all())
        .map_err(|error| failed(folder, &error))?;
    Ok(())
}

/// Certificate and key as PEM.
fn make(hosts: &[&str], years: u32) -> Result<(String, String), String> {
    let hosts: Vec<String> = hosts.iter().map(|host| (*host).to_owned()).collect();
    let key = KeyPair::generate().map_err(|error| error.to_string())?;
    let mut params = CertificateParams::new(hosts).map_err(|error| error.to_string())?;
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::OrganizationName, "etcd");
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature, KeyUsagePurpose::KeyEncipherment];
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let now = SystemTime::now();
    let end = now.checked_add(YEAR.saturating_mul(years));
    let last = end.filter(|_| years <= YEARS_MAX).ok_or(format!("{years} years are too many"))?;
    params.not_before = now.into();
    params.not_after = last.into();
    let cert = params.self_signed(&key).map_err(|error| error.to_string())?;
    Ok((cert.pem(), key.serialize_pem()))
}
