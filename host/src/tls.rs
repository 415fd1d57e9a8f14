//! Who is at the other end: mutual TLS 1.3 in which a certificate counts for the cluster, role and name it states.
//!
//! - T1 Both ends prove a certificate that the other's authorities signed, of the same cluster; there is no other mode.
//! - T2 A caller goes on only with a server whose role may serve what it asks, under the name it expects if it expects one.
//!   Host names and addresses in certificates are not looked at: servers may move.
//! - T3 Nothing is resumed and nothing is sent early: every connection proves its certificates anew, and a request is
//!   never replayed.
//! - T4 New credentials replace the old ones at once for new connections, or not at all.
//!
//! Certificates are judged by the node's own [`Clock`], so a simulated node lives on simulated days.

use std::path::PathBuf;
use std::sync::Arc;

use arc_swap::ArcSwap;
use milonga_wire::{Caller, ClusterId, Kind};
use rustls::client::ResolvesClientCert;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::CryptoProvider;
use rustls::crypto::ring::cipher_suite;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, UnixTime};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::server::{
    ClientHello, NoServerSessionStorage, ParsedCertificate, ResolvesServerCert,
    WebPkiClientVerifier,
};
use rustls::sign::CertifiedKey;
use rustls::time_provider::TimeProvider;
use rustls::{
    CertificateError as Invalid, DigitallySignedStruct, DistinguishedName, OtherError,
    RootCertStore, SignatureScheme,
};

use crate::certificates::{self, Subject};
use crate::net::PeerKind;
use crate::{Clock, Peer};

/// What the two ends agree to speak: the version of the protocol.
pub const PROTOCOL: &[u8] = b"milonga/1";

/// What is looked for in a member's two files.
const CERTIFICATE: &str = "certificate";
const PRIVATE_KEY: &str = "private key";

/// Why credentials are of no use.
#[derive(Debug, thiserror::Error)]
pub enum CredentialsError {
    /// The text is not what it should be.
    #[error("no usable {expected}: {why}")]
    NotPem {
        /// What was looked for.
        expected: &'static str,
        /// What is wrong.
        why: String,
    },
    /// A file holds something else.
    #[error("{}: {why}; use the files that `milonga certs issue` has written", path.display())]
    InFile {
        /// Which file.
        path: PathBuf,
        /// What is wrong with it.
        why: Box<CredentialsError>,
    },
    /// A file that is not there or cannot be read, or a certificate of no member of a cluster.
    #[error(transparent)]
    Certificate(#[from] certificates::CertificateError),
    /// Certificate and key are of different pairs.
    #[error("the private key does not belong to the certificate; use the .key beside the .pem")]
    KeyMismatch,
    /// Its time is over.
    #[error(
        "the certificate of {name} expired {not_after}; issue a new one with `milonga certs issue --force`"
    )]
    Expired {
        /// Whose.
        name: String,
        /// When.
        not_after: String,
    },
    /// Its time has not come.
    #[error(
        "the certificate of {name} is valid only from {not_before}; check this machine's clock"
    )]
    NotYetValid {
        /// Whose.
        name: String,
        /// From when.
        not_before: String,
    },
    /// None of the authorities signed it.
    #[error(
        "none of the given authorities signed the certificate of {name} ({why}); use the ca.pem it was issued with"
    )]
    UnknownAuthority {
        /// Whose.
        name: String,
        /// What is wrong.
        why: String,
    },
    /// New credentials are of somebody else. The old ones stay.
    #[error(
        "the new certificate is of {new}, this process is {current}; restart it to change that"
    )]
    OtherIdentity {
        /// Who this is.
        current: String,
        /// Whom the new one names.
        new: String,
    },
}

/// Where a node's credentials are.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct CredentialFiles {
    /// Its certificate (and those between it and the authority, if any).
    pub certificate: PathBuf,
    /// Its key.
    pub key: PathBuf,
    /// The authorities it trusts; several while one replaces another.
    pub authorities: PathBuf,
}

/// The same as text.
#[derive(Clone, Copy)]
pub struct CredentialTexts<'a> {
    /// Its certificate.
    pub certificate: &'a str,
    /// Its key.
    pub key: &'a str,
    /// The authorities it trusts.
    pub authorities: &'a str,
}

/// A node's certificate and key, and the authorities it trusts. Clones share what [`Credentials::reload`] replaces.
#[derive(Clone, Debug)]
pub struct Credentials(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    current: ArcSwap<Material>,
    clock: Clock,
}

/// Credentials that have passed every check.
struct Material {
    certified: Arc<CertifiedKey>,
    roots: Arc<RootCertStore>,
    callers: Arc<dyn ClientCertVerifier>,
    identity: Caller,
    not_after: i64,
    reset_secret: [u8; 32],
}

impl std::fmt::Debug for Material {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Material")
            .field("identity", &self.identity)
            .field("not_after", &self.not_after)
            .finish_non_exhaustive()
    }
}

impl CredentialsError {
    /// The same, with the name of the file that is not what it should be.
    fn of(self, files: &CredentialFiles) -> Self {
        let path = match &self {
            Self::NotPem { expected, .. } if *expected == CERTIFICATE => &files.certificate,
            Self::NotPem { expected, .. } if *expected == PRIVATE_KEY => &files.key,
            Self::NotPem { .. } => &files.authorities,
            _ => return self,
        };
        Self::InFile {
            path: path.clone(),
            why: Box::new(self),
        }
    }
}

impl Credentials {
    /// Reads credentials from files.
    ///
    /// # Errors
    /// The first thing that is wrong with them.
    pub fn load(files: &CredentialFiles, clock: &Clock) -> Result<Self, CredentialsError> {
        let read = Files::read(files)?;
        Self::from_pem(read.texts(), clock).map_err(|error| error.of(files))
    }

    /// Credentials from text.
    ///
    /// # Errors
    /// The first thing that is wrong with them.
    pub fn from_pem(texts: CredentialTexts<'_>, clock: &Clock) -> Result<Self, CredentialsError> {
        let current = ArcSwap::from_pointee(Material::checked(texts, clock)?);
        let clock = clock.clone();
        Ok(Self(Arc::new(Shared { current, clock })))
    }

    /// Reads the files again. New connections use what they hold; existing ones live on (T4).
    ///
    /// # Errors
    /// What is wrong with the new ones; the old ones stay in use.
    pub fn reload(&self, files: &CredentialFiles) -> Result<(), CredentialsError> {
        let read = Files::read(files)?;
        self.reload_pem(read.texts())
            .map_err(|error| error.of(files))
    }

    /// [`Credentials::reload`] from text.
    ///
    /// # Errors
    /// What is wrong with the new ones; the old ones stay in use.
    pub fn reload_pem(&self, texts: CredentialTexts<'_>) -> Result<(), CredentialsError> {
        let new = Material::checked(texts, &self.0.clock)?;
        let current = self.identity();
        if new.identity != current {
            let text =
                |caller: &Caller| format!("{} {} of {}", caller.role, caller.name, caller.cluster);
            return Err(CredentialsError::OtherIdentity {
                current: text(&current),
                new: text(&new.identity),
            });
        }
        self.0.current.store(Arc::new(new));
        Ok(())
    }

    /// Whom the certificate names.
    pub fn identity(&self) -> Caller {
        self.0.current.load().identity.clone()
    }

    /// When the certificate ends: milliseconds since 1970.
    pub fn not_after_ms(&self) -> u64 {
        u64::try_from(self.0.current.load().not_after).unwrap_or(0) * 1_000
    }

    /// A secret that is the same at every start with the same key.
    pub(crate) fn reset_secret(&self) -> [u8; 32] {
        self.0.current.load().reset_secret
    }

    /// How to accept callers (T1, T3).
    pub(crate) fn server_config(&self) -> rustls::ServerConfig {
        let mut config =
            rustls::ServerConfig::builder_with_details(provider(), self.time_provider())
                .with_protocol_versions(&[&rustls::version::TLS13])
                .expect("the suites are of TLS 1.3")
                .with_client_cert_verifier(Arc::new(CallerCheck(self.clone())))
                .with_cert_resolver(Arc::new(Own(self.clone())));
        config.alpn_protocols = vec![PROTOCOL.to_vec()];
        config.session_storage = Arc::new(NoServerSessionStorage {});
        config.send_tls13_tickets = 0;
        config.max_early_data_size = 0;
        config
    }

    /// How to call `peer` (T1, T2, T3).
    pub(crate) fn client_config(&self, peer: &Peer) -> rustls::ClientConfig {
        let check = ServerCheck {
            credentials: self.clone(),
            peer: peer.clone(),
        };
        let mut config =
            rustls::ClientConfig::builder_with_details(provider(), self.time_provider())
                .with_protocol_versions(&[&rustls::version::TLS13])
                .expect("the suites are of TLS 1.3")
                .dangerous()
                .with_custom_certificate_verifier(Arc::new(check))
                .with_client_cert_resolver(Arc::new(Own(self.clone())));
        config.alpn_protocols = vec![PROTOCOL.to_vec()];
        config.resumption = rustls::client::Resumption::disabled();
        config.enable_sni = false;
        config.enable_early_data = false;
        config
    }

    fn time_provider(&self) -> Arc<dyn TimeProvider> {
        Arc::new(Wall(self.0.clock.clone()))
    }
}

/// Whom the certificates that a finished handshake proved name.
pub(crate) fn proved(chain: &[CertificateDer<'_>]) -> Option<Caller> {
    match certificates::subject_of(chain.first()?) {
        Ok(Subject::Member(caller)) => Some(caller),
        Ok(Subject::Authority(_)) | Err(_) => None,
    }
}

/// Whose certificate a failed handshake found fault with.
#[derive(Copy, Clone, Debug, Eq, PartialEq)]
pub(crate) enum Whose {
    /// This node's: the other end said so.
    Ours,
    /// The other end's.
    Theirs,
}

/// A failed handshake's reason in words that say what to do.
pub(crate) fn explain(reason: &str, whose: Whose) -> String {
    let (its, other) = match whose {
        Whose::Ours => ("this node's certificate", "the server"),
        Whose::Theirs => ("the server's certificate", "this node"),
    };
    let has = |word: &str| reason.contains(word);
    if let Some((_, own)) = reason.split_once("other error: ") {
        format!("{other} refuses {its}: {own}")
    } else if has("NotValidYet") || has("not valid yet") {
        format!("{its} is not valid yet; check the clocks of both machines")
    } else if has("Expired") || has("expired") {
        format!(
            "{its} has expired; issue a new one with `milonga certs issue`, or check the clocks of both machines"
        )
    } else if has("UnknownIssuer") || has("BadSignature") {
        format!(
            "{its} was issued by an authority that {other} does not trust; both ends need the ca.pem of one cluster"
        )
    } else if has("extended key usage") || has("InvalidPurpose") {
        format!("{its} is a client's and may not serve; issue one with `--role server`")
    } else if has("peer sent no certificates") {
        format!("{other} was shown no certificate; give this node one")
    } else if has("known protocol") {
        "the two ends speak different versions of the protocol; use programs of one version"
            .to_owned()
    } else {
        format!("the handshake failed: {reason}")
    }
}

/// What is wrong with a certificate that is genuine.
#[derive(Debug, thiserror::Error)]
enum Mismatch {
    #[error("{0}")]
    NotMilonga(String),
    #[error("it is of cluster {found}, expected {expected}; use the certificates of one cluster")]
    Cluster {
        found: ClusterId,
        expected: ClusterId,
    },
    #[error("its role {found} may not serve as {expected}; issue one with `--role server`")]
    Role {
        found: milonga_wire::Role,
        expected: &'static str,
    },
    #[error("it is of {found}, expected {expected}; another server listens at that address")]
    Name { found: String, expected: String },
}

impl From<Mismatch> for rustls::Error {
    fn from(mismatch: Mismatch) -> Self {
        // Not as an invalid certificate: only so do the words travel to the other end.
        Self::Other(OtherError(Arc::new(mismatch)))
    }
}

/// T1.
fn member_of(cluster: ClusterId, der: &CertificateDer<'_>) -> Result<Caller, Mismatch> {
    let caller = match certificates::subject_of(der) {
        Ok(Subject::Member(caller)) => caller,
        Ok(Subject::Authority(_)) => {
            return Err(Mismatch::NotMilonga("it is an authority's".to_owned()));
        }
        Err(error) => return Err(Mismatch::NotMilonga(error.to_string())),
    };
    if caller.cluster != cluster {
        return Err(Mismatch::Cluster {
            found: caller.cluster,
            expected: cluster,
        });
    }
    Ok(caller)
}

/// T2.
fn expected(peer: &Peer, caller: &Caller) -> Result<(), Mismatch> {
    let (serves, expected) = match peer.kind {
        PeerKind::Layout => (caller.role.may_serve(Kind::Layout), "a layout server"),
        PeerKind::Sequencer => (caller.role.may_serve(Kind::Sequencer), "a sequencer"),
        PeerKind::LogUnit => (caller.role.may_serve(Kind::LogUnit), "a log unit"),
        PeerKind::Any => (caller.role.is_server(), "a server"),
    };
    if !serves {
        let found = caller.role;
        return Err(Mismatch::Role { found, expected });
    }
    match &peer.name {
        Some(name) if *name != caller.name => Err(Mismatch::Name {
            found: caller.name.to_string(),
            expected: name.to_string(),
        }),
        Some(_) | None => Ok(()),
    }
}

impl Material {
    fn checked(texts: CredentialTexts<'_>, clock: &Clock) -> Result<Self, CredentialsError> {
        let not_pem = |expected: &'static str| {
            move |error: rustls::pki_types::pem::Error| CredentialsError::NotPem {
                expected,
                why: error.to_string(),
            }
        };
        let chain = CertificateDer::pem_slice_iter(texts.certificate.as_bytes())
            .collect::<Result<Vec<_>, _>>()
            .map_err(not_pem(CERTIFICATE))?;
        let leaf = chain.first().ok_or_else(|| CredentialsError::NotPem {
            expected: CERTIFICATE,
            why: "the file holds none".to_owned(),
        })?;
        let Subject::Member(identity) = certificates::subject_of(leaf)? else {
            let why = "it is an authority's".to_owned();
            return Err(certificates::CertificateError::NotMilonga { why }.into());
        };
        let (not_before, not_after) = certificates::validity_of(leaf)?;
        let leaf = leaf.clone();
        let key =
            PrivateKeyDer::from_pem_slice(texts.key.as_bytes()).map_err(not_pem(PRIVATE_KEY))?;
        let reset_secret =
            certificates::digest(&[b"stateless reset".as_slice(), key.secret_der()].concat());
        let certified =
            CertifiedKey::from_der(chain, key, &provider()).map_err(|error| match error {
                rustls::Error::InconsistentKeys(_) => CredentialsError::KeyMismatch,
                error => CredentialsError::NotPem {
                    expected: PRIVATE_KEY,
                    why: error.to_string(),
                },
            })?;

        let name = identity.name.to_string();
        let now = i64::try_from(clock.wall_ms() / 1_000).unwrap_or(i64::MAX);
        if now < not_before {
            let not_before = certificates::moment_text(not_before);
            return Err(CredentialsError::NotYetValid { name, not_before });
        }
        if now > not_after {
            let not_after = certificates::moment_text(not_after);
            return Err(CredentialsError::Expired { name, not_after });
        }

        let roots = roots(texts.authorities)?;
        let callers = WebPkiClientVerifier::builder_with_provider(roots.clone(), provider())
            .clear_root_hint_subjects()
            .build()
            .expect("there is at least one authority");
        callers
            .verify_client_cert(&leaf, &certified.cert[1..], unix_time(clock))
            .map_err(|error| CredentialsError::UnknownAuthority {
                name,
                why: error.to_string(),
            })?;
        Ok(Self {
            certified: Arc::new(certified),
            roots,
            callers,
            identity,
            not_after,
            reset_secret,
        })
    }
}

fn roots(authorities: &str) -> Result<Arc<RootCertStore>, CredentialsError> {
    let bad = |why: String| CredentialsError::NotPem {
        expected: "authority's certificate",
        why,
    };
    let mut roots = RootCertStore::empty();
    for authority in CertificateDer::pem_slice_iter(authorities.as_bytes()) {
        let authority = authority.map_err(|error| bad(error.to_string()))?;
        roots
            .add(authority)
            .map_err(|error| bad(error.to_string()))?;
    }
    if roots.is_empty() {
        return Err(bad("the file holds none".to_owned()));
    }
    Ok(Arc::new(roots))
}

struct Files {
    certificate: String,
    key: String,
    authorities: String,
}

impl Files {
    fn read(files: &CredentialFiles) -> Result<Self, CredentialsError> {
        const HINT: &str = "issue certificates with `milonga certs issue`, or correct the path";
        let read = |path| certificates::read(path, HINT);
        Ok(Self {
            certificate: read(&files.certificate)?,
            key: read(&files.key)?,
            authorities: read(&files.authorities)?,
        })
    }

    fn texts(&self) -> CredentialTexts<'_> {
        CredentialTexts {
            certificate: &self.certificate,
            key: &self.key,
            authorities: &self.authorities,
        }
    }
}

/// ring, with the suite first that processors are fastest at.
fn provider() -> Arc<CryptoProvider> {
    Arc::new(CryptoProvider {
        cipher_suites: vec![
            cipher_suite::TLS13_AES_128_GCM_SHA256,
            cipher_suite::TLS13_AES_256_GCM_SHA384,
            cipher_suite::TLS13_CHACHA20_POLY1305_SHA256,
        ],
        ..rustls::crypto::ring::default_provider()
    })
}

#[derive(Debug)]
struct Wall(Clock);

impl TimeProvider for Wall {
    fn current_time(&self) -> Option<UnixTime> {
        Some(unix_time(&self.0))
    }
}

fn unix_time(clock: &Clock) -> UnixTime {
    UnixTime::since_unix_epoch(std::time::Duration::from_millis(clock.wall_ms()))
}

/// This node's own certificate, whichever is current.
#[derive(Debug)]
struct Own(Credentials);

impl ResolvesServerCert for Own {
    fn resolve(&self, _hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.0.0.current.load().certified.clone())
    }
}

impl ResolvesClientCert for Own {
    fn resolve(&self, _hints: &[&[u8]], _schemes: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        Some(self.0.0.current.load().certified.clone())
    }

    fn has_certs(&self) -> bool {
        true
    }
}

/// What a server wants of its callers.
#[derive(Debug)]
struct CallerCheck(Credentials);

impl ClientCertVerifier for CallerCheck {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, rustls::Error> {
        let current = self.0.0.current.load();
        let verified = current
            .callers
            .verify_client_cert(end_entity, intermediates, now)?;
        member_of(current.identity.cluster, end_entity)?;
        Ok(verified)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_signature(message, cert, dss)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_signature(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        schemes()
    }
}

/// What a caller wants of one server.
#[derive(Debug)]
struct ServerCheck {
    credentials: Credentials,
    peer: Peer,
}

impl ServerCertVerifier for ServerCheck {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _server_name: &rustls::pki_types::ServerName<'_>,
        _ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let current = self.credentials.0.current.load();
        let parsed = ParsedCertificate::try_from(end_entity)?;
        rustls::client::verify_server_cert_signed_by_trust_anchor(
            &parsed,
            &current.roots,
            intermediates,
            now,
            algorithms().all,
        )?;
        let caller = member_of(current.identity.cluster, end_entity)?;
        expected(&self.peer, &caller)?;
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_signature(message, cert, dss)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_signature(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        schemes()
    }
}

fn algorithms() -> rustls::crypto::WebPkiSupportedAlgorithms {
    rustls::crypto::ring::default_provider().signature_verification_algorithms
}

/// Ed25519 alone: the authority issues nothing else.
fn schemes() -> Vec<SignatureScheme> {
    vec![SignatureScheme::ED25519]
}

/// Only TLS 1.3 is spoken, so only its rules are followed, whoever asks.
fn verify_signature(
    message: &[u8],
    cert: &CertificateDer<'_>,
    dss: &DigitallySignedStruct,
) -> Result<HandshakeSignatureValid, rustls::Error> {
    if dss.scheme != SignatureScheme::ED25519 {
        return Err(Invalid::BadSignature.into());
    }
    rustls::crypto::verify_tls13_signature(message, cert, dss, &algorithms())
}

#[cfg(test)]
mod tests {
    use milonga_wire::Role;

    use super::*;
    use crate::certificates::{CertificateError, Pair, Validity, new_authority, new_leaf};

    const NOW_MS: u64 = 1_800_000_000_000;
    const VALID: Validity = Validity {
        from_ms: NOW_MS,
        days: 30,
    };

    fn clock(ms: u64) -> Clock {
        Clock::simulated(0, ms)
    }

    fn leaf(authority: &Pair, name: &str) -> Pair {
        new_leaf(authority, Role::Server, &name.parse().unwrap(), &[], VALID).unwrap()
    }

    fn texts<'a>(leaf: &'a Pair, authority: &'a Pair) -> CredentialTexts<'a> {
        CredentialTexts {
            certificate: &leaf.certificate,
            key: &leaf.key,
            authorities: &authority.certificate,
        }
    }

    #[tokio::test(start_paused = true)]
    async fn every_fault_of_credentials_has_its_own_error() {
        let clock_now = clock(NOW_MS);
        let ca = new_authority(ClusterId([1; 16]), VALID).unwrap();
        let other = new_authority(ClusterId([1; 16]), VALID).unwrap();
        let (mine, yours) = (leaf(&ca, "a"), leaf(&ca, "b"));
        let load = |texts, clock: &Clock| Credentials::from_pem(texts, clock).map(|_| ());

        assert!(load(texts(&mine, &ca), &clock_now).is_ok());
        let swapped = CredentialTexts {
            key: &yours.key,
            ..texts(&mine, &ca)
        };
        assert!(matches!(
            load(swapped, &clock_now),
            Err(CredentialsError::KeyMismatch)
        ));
        assert!(matches!(
            load(texts(&mine, &other), &clock_now),
            Err(CredentialsError::UnknownAuthority { .. })
        ));
        assert!(matches!(
            load(texts(&ca, &ca), &clock_now),
            Err(CredentialsError::Certificate(
                CertificateError::NotMilonga { .. }
            ))
        ));
        let late = clock(NOW_MS + 31 * 86_400_000);
        assert!(matches!(
            load(texts(&mine, &ca), &late),
            Err(CredentialsError::Expired { .. })
        ));
        let early = clock(NOW_MS - 2 * 3_600_000);
        assert!(matches!(
            load(texts(&mine, &ca), &early),
            Err(CredentialsError::NotYetValid { .. })
        ));
        for (certificate, key, authorities) in [
            ("", mine.key.as_str(), ca.certificate.as_str()),
            (&mine.certificate, "", &ca.certificate),
            (&mine.certificate, &mine.key, "x"),
        ] {
            let texts = CredentialTexts {
                certificate,
                key,
                authorities,
            };
            assert!(matches!(
                load(texts, &clock_now),
                Err(CredentialsError::NotPem { .. })
            ));
        }
        let nowhere = CredentialFiles {
            certificate: "/nowhere/a.pem".into(),
            key: "/nowhere/a.key".into(),
            authorities: "/nowhere/ca.pem".into(),
        };
        assert!(matches!(
            Credentials::load(&nowhere, &clock_now),
            Err(CredentialsError::Certificate(
                CertificateError::Missing { .. }
            ))
        ));
    }

    /// T4: a half-written file must not take a server's certificate away.
    #[tokio::test(start_paused = true)]
    async fn bad_new_credentials_leave_the_old_ones_in_place() {
        let clock = clock(NOW_MS);
        let ca = new_authority(ClusterId([1; 16]), VALID).unwrap();
        let (mine, yours) = (leaf(&ca, "a"), leaf(&ca, "b"));
        let credentials = Credentials::from_pem(texts(&mine, &ca), &clock).unwrap();
        let shown = || credentials.0.current.load().certified.cert[0].clone();
        let first = shown();

        let half = CredentialTexts {
            certificate: &mine.certificate[..100],
            ..texts(&mine, &ca)
        };
        assert!(credentials.reload_pem(half).is_err());
        assert!(matches!(
            credentials.reload_pem(texts(&yours, &ca)),
            Err(CredentialsError::OtherIdentity { .. })
        ));
        assert_eq!(shown(), first);

        let renewed = leaf(&ca, "a");
        credentials.reload_pem(texts(&renewed, &ca)).unwrap();
        assert_ne!(shown(), first);
    }

    /// The reasons come from two libraries and the network: these words are what they were seen to say.
    #[test]
    fn reasons_of_failed_handshakes_say_what_to_do() {
        for (reason, hint) in [
            ("invalid peer certificate: Expired", "certs issue"),
            (
                "invalid peer certificate: certificate expired: verification time 1 (UNIX)",
                "certs issue",
            ),
            ("invalid peer certificate: NotValidYet", "clocks"),
            ("invalid peer certificate: UnknownIssuer", "ca.pem"),
            ("invalid peer certificate: BadSignature", "ca.pem"),
            (
                "certificate does not allow extended key usage for server authentication",
                "--role server",
            ),
            ("peer doesn't support any known protocol", "one version"),
            ("other error: it is of b, expected a", "it is of b"),
        ] {
            for whose in [Whose::Ours, Whose::Theirs] {
                let text = explain(reason, whose);
                assert!(text.contains(hint), "{reason}: {text}");
            }
        }
    }
}
