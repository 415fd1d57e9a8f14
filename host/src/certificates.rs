//! The cluster's certificate authority and the certificates it issues: PEM in, PEM out, and a thin layer of files.
//!
//! ```text
//! DIR/ca.pem   the authority: every member needs it        DIR/<name>.pem   one member's certificate
//! DIR/ca.key   its key: keep it where certificates are     DIR/<name>.key   its key
//!              issued, and nowhere else
//! ```
//! - I1 A certificate names whom it is for in one URI, `milonga://<cluster>/<role>/<name>`; the authority's names the
//!   cluster alone. Nothing else in it is believed.
//! - I2 Every authority has a subject of its own, so a foreign one is recognised as foreign and not as forged.
//! - I3 Keys are Ed25519: signatures have one length, so a simulated run sends packets of the same sizes every time.
//!
//! Beside `fs.rs`, this is the only file here that names the file system: it runs in commands, never in a server.

use std::fs::{self, OpenOptions};
use std::io::{self, Write};
use std::net::IpAddr;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use milonga_wire::{Caller, ClusterId, InvalidName, Role, ServerName};
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa,
    Issuer, KeyPair, KeyUsagePurpose, PKCS_ED25519, PublicKeyData, SanType, SerialNumber,
};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use serde::Serialize;
use time::format_description::well_known::Rfc3339;
use time::{Duration, OffsetDateTime};
use x509_parser::prelude::{FromDer, GeneralName, X509Certificate};

use crate::{Clock, Random};

const SCHEME: &str = "milonga://";
/// How far back a certificate is dated, for members whose clocks run behind.
const BACKDATED: Duration = Duration::hours(1);
/// The longest that anything here may be valid.
const DAYS_MAX: u32 = 36_500;

/// Why a certificate was not made, or not read.
#[derive(Debug, thiserror::Error)]
pub enum CertificateError {
    /// The file is there. Nothing was written.
    #[error(
        "{} exists already; give --force to replace it, or choose another directory",
        path.display()
    )]
    Exists {
        /// Which file.
        path: PathBuf,
    },
    /// The file is not there.
    #[error("there is no {}; {hint}", path.display())]
    Missing {
        /// Which file.
        path: PathBuf,
        /// What to do.
        hint: &'static str,
    },
    /// The file cannot be read or written.
    #[error("cannot use {}: {why}; check who owns it and what is allowed", path.display())]
    File {
        /// Which file.
        path: PathBuf,
        /// The machine's reason.
        why: io::Error,
    },
    /// The text holds no certificate or key.
    #[error("no {expected} in PEM form: {why}")]
    NotPem {
        /// What was looked for.
        expected: &'static str,
        /// What is wrong.
        why: String,
    },
    /// A certificate, but none that names a member of a Milonga cluster.
    #[error(
        "not a milonga certificate: {why}; issue one with `milonga certs issue --role … --name …`"
    )]
    NotMilonga {
        /// What is wrong.
        why: String,
    },
    /// The authority's certificate and key do not belong together.
    #[error(
        "the authority's key does not belong to its certificate; restore both from the same place"
    )]
    KeyMismatch,
    /// The authority's own certificate is over.
    #[error("the authority expired {not_after}; make a new one with `milonga certs init`")]
    AuthorityExpired {
        /// When.
        not_after: String,
    },
    /// A host that is neither a name nor an address.
    #[error("`{host}` is neither a host name nor an address; give what clients dial")]
    BadHost {
        /// What was given.
        host: String,
    },
    /// The authority's files have that name.
    #[error("the name `ca` is the authority's; choose another one")]
    ReservedName,
    /// A validity that makes no sense.
    #[error("{days} days; expected 1 to {DAYS_MAX}")]
    BadDays {
        /// What was asked.
        days: u32,
    },
}

/// A certificate and its key, both PEM.
#[derive(Clone)]
pub struct Pair {
    /// The certificate.
    pub certificate: String,
    /// Its private key.
    pub key: String,
}

impl std::fmt::Debug for Pair {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Pair")
            .field("certificate", &self.certificate)
            .finish_non_exhaustive()
    }
}

/// From when and how long something is valid.
#[derive(Copy, Clone, Debug)]
pub struct Validity {
    /// Milliseconds since 1970: now.
    pub from_ms: u64,
    /// How many days.
    pub days: u32,
}

impl Validity {
    fn bounds(self) -> Result<(OffsetDateTime, OffsetDateTime), CertificateError> {
        if !(1..=DAYS_MAX).contains(&self.days) {
            return Err(CertificateError::BadDays { days: self.days });
        }
        let from = date(self.from_ms / 1_000);
        Ok((
            from.saturating_sub(BACKDATED),
            from.saturating_add(Duration::days(i64::from(self.days))),
        ))
    }
}

/// What a certificate says, for people and for JSON.
#[derive(Clone, Debug, Eq, PartialEq, Serialize)]
pub struct Details {
    /// The cluster, 32 hexadecimal digits.
    pub cluster: String,
    /// The role; `authority` for the cluster's own.
    pub role: String,
    /// The name; none for the authority.
    pub name: Option<String>,
    /// The first moment at which it is valid, RFC 3339.
    pub not_before: String,
    /// The last, RFC 3339.
    pub not_after: String,
    /// The subject of the authority that issued it.
    pub issuer: String,
    /// SHA-256 of it, in hexadecimal.
    pub fingerprint: String,
}

/// Where an issued certificate went.
#[derive(Clone, Debug, Eq, PartialEq, Serialize)]
pub struct Issued {
    /// The certificate.
    pub certificate: PathBuf,
    /// Its key.
    pub key: PathBuf,
    /// The authority's certificate, which goes with them.
    pub authority: PathBuf,
}

/// The authority of a new cluster: self-signed, and of no use for issuing further authorities.
///
/// # Errors
/// [`CertificateError::BadDays`].
pub fn new_authority(cluster: ClusterId, valid: Validity) -> Result<Pair, CertificateError> {
    let (not_before, not_after) = valid.bounds()?;
    let key = new_key();
    let mut params = CertificateParams::default();
    params.not_before = not_before;
    params.not_after = not_after;
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    // I2: several authorities of one cluster follow each other, on one day even.
    let made = text_of(not_before + BACKDATED);
    let mark: String = hex(&digest(key.subject_public_key_info().as_ref())[..4]);
    params.distinguished_name = named(&format!("milonga authority {cluster} {made} {mark}"));
    params.subject_alt_names = vec![uri(&format!("{SCHEME}{cluster}"))];
    let certificate = params
        .self_signed(&key)
        .expect("an Ed25519 key signs whatever it is given");
    Ok(Pair {
        certificate: certificate.pem(),
        key: key.serialize_pem(),
    })
}

/// A certificate for `name` in `role`, of the authority's cluster. It ends no later than the authority does.
///
/// `hosts` are names and addresses for programs that check them; members know each other by role and name alone.
///
/// # Errors
/// Whatever is wrong with the authority, the hosts or the days.
pub fn new_leaf(
    authority: &Pair,
    role: Role,
    name: &ServerName,
    hosts: &[String],
    valid: Validity,
) -> Result<Pair, CertificateError> {
    let cluster = cluster_of(&authority.certificate)?;
    let caller = Caller {
        cluster,
        role,
        name: name.clone(),
    };
    sign(authority, &caller, hosts, valid)
}

/// The cluster of an authority.
///
/// # Errors
/// If the text is no authority's certificate.
pub fn cluster_of(authority_pem: &str) -> Result<ClusterId, CertificateError> {
    let der = first_certificate(authority_pem)?;
    match subject_of(&der)? {
        Subject::Authority(cluster) => Ok(cluster),
        Subject::Member(caller) => Err(CertificateError::NotMilonga {
            why: format!("it is the certificate of {}, not an authority", caller.name),
        }),
    }
}

/// What the first certificate in `pem` says.
///
/// # Errors
/// If there is none, or it is not one of ours.
pub fn details(pem: &str) -> Result<Details, CertificateError> {
    let der = first_certificate(pem)?;
    let (cluster, role, name) = match subject_of(&der)? {
        Subject::Authority(cluster) => (cluster, "authority".to_owned(), None),
        Subject::Member(caller) => (
            caller.cluster,
            caller.role.to_string(),
            Some(caller.name.to_string()),
        ),
    };
    let parsed = parse(&der)?;
    let text = |at: x509_parser::time::ASN1Time| text_of(at.to_datetime());
    Ok(Details {
        cluster: cluster.to_string(),
        role,
        name,
        not_before: text(parsed.validity().not_before),
        not_after: text(parsed.validity().not_after),
        issuer: parsed.issuer().to_string(),
        fingerprint: hex(&digest(&der)),
    })
}

/// Makes a new cluster's authority in `dir` and returns the id of that cluster.
///
/// # Errors
/// [`CertificateError::Exists`] unless `force`; then the old authority is lost, and with it every certificate it issued.
pub fn create_authority(
    dir: &Path,
    clock: &Clock,
    random: &Random,
    days: u32,
    force: bool,
) -> Result<ClusterId, CertificateError> {
    let cluster = ClusterId(random.id());
    let from_ms = clock.wall_ms();
    let pair = new_authority(cluster, Validity { from_ms, days })?;
    let failed = |why| file_error(dir, why, "");
    fs::create_dir_all(dir).map_err(failed)?;
    store(dir, "ca", &pair, force)?;
    Ok(cluster)
}

/// Issues a certificate with the authority in `dir`, into `dir`.
///
/// # Errors
/// [`CertificateError::Exists`] unless `force`, and what [`new_leaf`] meets.
pub fn issue(
    dir: &Path,
    role: Role,
    name: &ServerName,
    hosts: &[String],
    clock: &Clock,
    days: u32,
    force: bool,
) -> Result<Issued, CertificateError> {
    const HINT: &str = "make an authority with `milonga certs init --dir …` first";
    if name.as_str() == "ca" {
        return Err(CertificateError::ReservedName);
    }
    let authority = Pair {
        certificate: read(&dir.join("ca.pem"), HINT)?,
        key: read(&dir.join("ca.key"), HINT)?,
    };
    let from_ms = clock.wall_ms();
    let pair = new_leaf(&authority, role, name, hosts, Validity { from_ms, days })?;
    let [certificate, key] = store(dir, name.as_str(), &pair, force)?;
    Ok(Issued {
        certificate,
        key,
        authority: dir.join("ca.pem"),
    })
}

/// What the certificate in `file` says.
///
/// # Errors
/// As [`details`], and the file's own.
pub fn show(file: &Path) -> Result<Details, CertificateError> {
    details(&read(
        file,
        "give a .pem file that `milonga certs` has written",
    )?)
}

/// Whom a certificate names.
pub(crate) enum Subject {
    Authority(ClusterId),
    Member(Caller),
}

/// I1.
pub(crate) fn subject_of(der: &CertificateDer<'_>) -> Result<Subject, CertificateError> {
    let parsed = parse(der)?;
    let names = parsed.subject_alternative_name().ok().flatten();
    let mut uris = names.iter().flat_map(|names| &names.value.general_names);
    let mut ours = uris.by_ref().filter_map(|name| match name {
        GeneralName::URI(uri) => uri.strip_prefix(SCHEME),
        _ => None,
    });
    let refuse = |why: String| CertificateError::NotMilonga { why };
    let (Some(identity), None) = (ours.next(), ours.next()) else {
        return Err(refuse(format!(
            "it does not carry exactly one {SCHEME}… name"
        )));
    };
    let parts: Vec<&str> = identity.split('/').collect();
    let invalid = |error: InvalidName| refuse(error.to_string());
    match (parts.as_slice(), parsed.is_ca()) {
        ([cluster], true) => Ok(Subject::Authority(cluster.parse().map_err(invalid)?)),
        ([cluster, role, name], false) => Ok(Subject::Member(Caller {
            cluster: cluster.parse().map_err(invalid)?,
            role: role.parse().map_err(invalid)?,
            name: name.parse().map_err(invalid)?,
        })),
        _ => Err(refuse(format!("{SCHEME}{identity} names no member"))),
    }
}

/// When a certificate starts and stops being valid: seconds since 1970.
pub(crate) fn validity_of(der: &CertificateDer<'_>) -> Result<(i64, i64), CertificateError> {
    let parsed = parse(der)?;
    let validity = parsed.validity();
    Ok((
        validity.not_before.timestamp(),
        validity.not_after.timestamp(),
    ))
}

/// A moment as people write it.
pub(crate) fn moment_text(seconds: i64) -> String {
    text_of(OffsetDateTime::from_unix_timestamp(seconds).unwrap_or(OffsetDateTime::UNIX_EPOCH))
}

/// Signs whatever identity it is given: tests need certificates of the wrong cluster.
pub(crate) fn sign(
    authority: &Pair,
    caller: &Caller,
    hosts: &[String],
    valid: Validity,
) -> Result<Pair, CertificateError> {
    let (not_before, not_after) = valid.bounds()?;
    let authority_der = first_certificate(&authority.certificate)?;
    let parsed = parse(&authority_der)?;
    let ends = parsed.validity().not_after.to_datetime();
    if ends <= not_before + BACKDATED {
        return Err(CertificateError::AuthorityExpired {
            not_after: text_of(ends),
        });
    }
    let not_pem = |error: rcgen::Error| CertificateError::NotPem {
        expected: "private key",
        why: error.to_string(),
    };
    let authority_key = KeyPair::from_pem(&authority.key).map_err(not_pem)?;
    if authority_key.subject_public_key_info().as_slice() != parsed.public_key().raw {
        return Err(CertificateError::KeyMismatch);
    }
    let issuer = Issuer::from_ca_cert_der(&authority_der, authority_key).map_err(|error| {
        CertificateError::NotMilonga {
            why: error.to_string(),
        }
    })?;

    let key = new_key();
    let mut params = CertificateParams::default();
    params.not_before = not_before;
    params.not_after = not_after.min(ends);
    params.serial_number = Some(SerialNumber::from_slice(&serial(&key)));
    params.distinguished_name = named(caller.name.as_str());
    params.subject_alt_names = vec![uri(&format!(
        "{SCHEME}{}/{}/{}",
        caller.cluster, caller.role, caller.name
    ))];
    for host in hosts {
        params.subject_alt_names.push(host_name(host)?);
    }
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
    if caller.role.is_server() {
        params
            .extended_key_usages
            .push(ExtendedKeyUsagePurpose::ServerAuth);
    }
    params.use_authority_key_identifier_extension = true;
    let certificate =
        params
            .signed_by(&key, &issuer)
            .map_err(|error| CertificateError::NotMilonga {
                why: error.to_string(),
            })?;
    Ok(Pair {
        certificate: certificate.pem(),
        key: key.serialize_pem(),
    })
}

/// SHA-256.
pub(crate) fn digest(bytes: &[u8]) -> [u8; 32] {
    let suite = rustls::crypto::ring::cipher_suite::TLS13_AES_128_GCM_SHA256;
    let hash = &suite.tls13().expect("a suite of TLS 1.3").common;
    let mut out = [0; 32];
    out.copy_from_slice(hash.hash_provider.hash(bytes).as_ref());
    out
}

fn new_key() -> KeyPair {
    KeyPair::generate_for(&PKCS_ED25519).expect("the operating system gives random numbers")
}

/// 16 bytes that no other certificate has, positive as numbers go in certificates.
fn serial(key: &KeyPair) -> [u8; 16] {
    let mut serial = [0; 16];
    serial.copy_from_slice(&digest(key.subject_public_key_info().as_ref())[..16]);
    serial[0] = serial[0] & 0x3f | 0x40;
    serial
}

fn named(common_name: &str) -> DistinguishedName {
    let mut name = DistinguishedName::new();
    name.push(DnType::CommonName, common_name);
    name
}

fn uri(text: &str) -> SanType {
    SanType::URI(
        text.try_into()
            .expect("ids, roles and names are plain ASCII"),
    )
}

fn host_name(host: &str) -> Result<SanType, CertificateError> {
    if let Ok(address) = host.parse::<IpAddr>() {
        return Ok(SanType::IpAddress(address));
    }
    let plain = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'.' | b'_' | b'*');
    let bad = || CertificateError::BadHost {
        host: host.chars().take(80).collect(),
    };
    if host.is_empty() || host.len() > 253 || !host.bytes().all(plain) {
        return Err(bad());
    }
    Ok(SanType::DnsName(host.try_into().map_err(|_| bad())?))
}

fn first_certificate(pem: &str) -> Result<CertificateDer<'static>, CertificateError> {
    CertificateDer::from_pem_slice(pem.as_bytes()).map_err(|error| CertificateError::NotPem {
        expected: "certificate",
        why: error.to_string(),
    })
}

fn parse<'a>(der: &'a CertificateDer<'_>) -> Result<X509Certificate<'a>, CertificateError> {
    let (_, parsed) =
        X509Certificate::from_der(der).map_err(|error| CertificateError::NotMilonga {
            why: error.to_string(),
        })?;
    Ok(parsed)
}

fn date(seconds: u64) -> OffsetDateTime {
    i64::try_from(seconds)
        .ok()
        .and_then(|seconds| OffsetDateTime::from_unix_timestamp(seconds).ok())
        .unwrap_or(OffsetDateTime::UNIX_EPOCH)
}

fn text_of(moment: OffsetDateTime) -> String {
    let whole = moment.replace_nanosecond(0).unwrap_or(moment);
    whole
        .format(&Rfc3339)
        .expect("certificates hold years of four digits")
}

fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write as _;
    bytes.iter().fold(String::new(), |mut text, byte| {
        write!(text, "{byte:02x}").expect("a string takes all text");
        text
    })
}

/// A file's text.
pub(crate) fn read(path: &Path, hint: &'static str) -> Result<String, CertificateError> {
    fs::read_to_string(path).map_err(|why| file_error(path, why, hint))
}

fn file_error(path: &Path, why: io::Error, hint: &'static str) -> CertificateError {
    let path = path.to_path_buf();
    match why.kind() {
        io::ErrorKind::NotFound => CertificateError::Missing { path, hint },
        _ => CertificateError::File { path, why },
    }
}

/// Writes both files, or neither if one is there. The key first: a certificate without its key only confuses.
fn store(
    dir: &Path,
    name: &str,
    pair: &Pair,
    force: bool,
) -> Result<[PathBuf; 2], CertificateError> {
    let certificate = dir.join(format!("{name}.pem"));
    let key = dir.join(format!("{name}.key"));
    for path in [&certificate, &key] {
        if !force && path.symlink_metadata().is_ok() {
            return Err(CertificateError::Exists { path: path.clone() });
        }
    }
    write_new(&key, pair.key.as_bytes(), 0o600)?;
    write_new(&certificate, pair.certificate.as_bytes(), 0o644)?;
    Ok([certificate, key])
}

/// Through a second name, so that nobody ever reads half of it, nor an old file's wider mode stays.
fn write_new(path: &Path, bytes: &[u8], mode: u32) -> Result<(), CertificateError> {
    let mut partial = path.as_os_str().to_owned();
    partial.push(".new");
    let partial = PathBuf::from(partial);
    let written = || {
        match fs::remove_file(&partial) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            Ok(()) | Err(_) => {}
        }
        let mut file = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(mode)
            .open(&partial)?;
        file.write_all(bytes)?;
        file.sync_all()?;
        fs::rename(&partial, path)
    };
    written().map_err(|why| file_error(path, why, "its directory must exist"))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    const VALID: Validity = Validity {
        from_ms: 1_800_000_000_000,
        days: 30,
    };

    fn authority(id: u8) -> Pair {
        new_authority(ClusterId([id; 16]), VALID).unwrap()
    }

    fn name(text: &str) -> ServerName {
        text.parse().unwrap()
    }

    /// I1: what was asked for is what a reader of the certificate sees.
    #[test]
    fn a_certificate_says_whom_it_is_for() {
        let ca = authority(3);
        for role in Role::ALL {
            let pair = new_leaf(&ca, role, &name("u-1"), &["db.example".into()], VALID).unwrap();
            let shown = details(&pair.certificate).unwrap();
            assert_eq!(shown.cluster, ClusterId([3; 16]).to_string());
            assert_eq!(
                (shown.role.as_str(), shown.name.as_deref()),
                (role.as_str(), Some("u-1"))
            );
            assert_eq!(shown.fingerprint.len(), 64);
            assert_eq!(shown.not_before, "2027-01-15T07:00:00Z");
            assert_eq!(shown.not_after, "2027-02-14T08:00:00Z");
        }
        assert_eq!(cluster_of(&ca.certificate).unwrap(), ClusterId([3; 16]));
        assert_eq!(details(&ca.certificate).unwrap().role, "authority");
    }

    /// I2: with equal subjects a foreign certificate would look forged instead of foreign.
    #[test]
    fn two_authorities_of_one_cluster_and_day_have_different_subjects() {
        let [first, second] = [authority(3), authority(3)];
        assert_ne!(
            details(&first.certificate).unwrap().issuer,
            details(&second.certificate).unwrap().issuer
        );
    }

    #[test]
    fn an_authority_that_is_over_or_has_another_key_issues_nothing() {
        let ca = authority(1);
        let swapped = Pair {
            key: authority(1).key,
            ..ca.clone()
        };
        let issue = |ca: &Pair, from_ms| {
            let valid = Validity { from_ms, days: 1 };
            new_leaf(ca, Role::Reader, &name("r"), &[], valid)
        };
        assert!(matches!(
            issue(&swapped, VALID.from_ms),
            Err(CertificateError::KeyMismatch)
        ));
        assert!(matches!(
            issue(&ca, VALID.from_ms + 31 * 86_400_000),
            Err(CertificateError::AuthorityExpired { .. })
        ));
        let late = issue(&ca, VALID.from_ms + 29 * 86_400_000 + 43_200_000).unwrap();
        assert_eq!(
            details(&late.certificate).unwrap().not_after,
            details(&ca.certificate).unwrap().not_after
        );
    }

    #[test]
    fn bad_hosts_days_and_texts_are_refused() {
        let ca = authority(1);
        for host in ["", "a b", "a/b", "ü"] {
            let refused = new_leaf(&ca, Role::Server, &name("s"), &[host.into()], VALID);
            assert!(
                matches!(refused, Err(CertificateError::BadHost { .. })),
                "{host}"
            );
        }
        for days in [0, 40_000] {
            let refused = new_authority(ClusterId([1; 16]), Validity { days, ..VALID });
            assert!(matches!(refused, Err(CertificateError::BadDays { .. })));
        }
        assert!(matches!(
            details("hello"),
            Err(CertificateError::NotPem { .. })
        ));
        let leaf = new_leaf(&ca, Role::Server, &name("s"), &["::1".into()], VALID).unwrap();
        assert!(matches!(
            cluster_of(&leaf.certificate),
            Err(CertificateError::NotMilonga { .. })
        ));
    }

    /// A replaced authority orphans every certificate it issued, so it takes a word; and keys are for their owner only.
    #[test]
    fn files_are_not_replaced_unless_forced_and_keys_are_private() {
        let dir = tempfile::tempdir().unwrap();
        let dir = dir.path().join("certs");
        let (clock, random) = (Clock::real(), Random::seeded(1));
        let missing = issue(&dir, Role::Writer, &name("w"), &[], &clock, 1, false);
        assert!(matches!(missing, Err(CertificateError::Missing { .. })));

        let cluster = create_authority(&dir, &clock, &random, 30, false).unwrap();
        let again = create_authority(&dir, &clock, &random, 30, false);
        assert!(matches!(again, Err(CertificateError::Exists { .. })));
        assert_eq!(
            show(&dir.join("ca.pem")).unwrap().cluster,
            cluster.to_string()
        );

        let issued = issue(&dir, Role::Writer, &name("w"), &[], &clock, 1, false).unwrap();
        let again = issue(&dir, Role::Writer, &name("w"), &[], &clock, 1, false);
        assert!(matches!(again, Err(CertificateError::Exists { .. })));
        let before = show(&issued.certificate).unwrap();
        issue(&dir, Role::Reader, &name("w"), &[], &clock, 1, true).unwrap();
        let after = show(&issued.certificate).unwrap();
        assert_ne!(before.fingerprint, after.fingerprint);
        assert_eq!(after.role, "reader");
        for key in [dir.join("ca.key"), issued.key] {
            assert_eq!(key.metadata().unwrap().permissions().mode() & 0o777, 0o600);
        }
        let own = issue(&dir, Role::Reader, &name("ca"), &[], &clock, 1, true);
        assert!(matches!(own, Err(CertificateError::ReservedName)));
    }
}
