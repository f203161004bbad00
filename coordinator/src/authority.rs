//! A private authority for trials. It signs a certificate for the coordinator, one for the workers, and one for each
//! person in one run. Clusters with a certificate manager use that instead, with the same names in the certificates.

use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose,
    SanType,
};
use time::{Duration, OffsetDateTime};

use crate::serve::access::Role;

/// The time by which certificates are backdated, because clocks differ.
const CLOCK_SLACK: Duration = Duration::minutes(5);

#[derive(Debug, Clone)]
pub struct Wanted {
    /// The names and addresses under which the coordinator is reached.
    pub server_names: Vec<String>,
    pub users: Vec<(String, Role)>,
    /// The validity of certificates. The authority lasts ten times as long.
    pub lasts: Duration,
}

#[derive(Debug, Clone)]
pub struct Made {
    pub authority: (String, String),
    pub pairs: Vec<Pair>,
}

#[derive(Debug, Clone)]
pub struct Pair {
    /// The name: `coordinator`, `worker`, or the person's name.
    pub name: String,
    pub what: String,
    pub certificate: String,
    pub key: String,
}

/// Makes certificates with the given authority, or with a new one.
pub fn make(wanted: &Wanted, kept: Option<&(String, String)>) -> Result<Made, String> {
    let now = OffsetDateTime::now_utc();
    let authority = match kept {
        Some(kept) => kept.clone(),
        None => new_authority(now, wanted.lasts)?,
    };
    let key = KeyPair::from_pem(&authority.1).map_err(|e| format!("ca.key: {e}"))?;
    let issuer = Issuer::new(authority_params(now, wanted.lasts)?, key);
    let ends = now + wanted.lasts;
    let mut pairs = Vec::new();
    let mut server = CertificateParams::new(wanted.server_names.clone()).map_err(|e| e.to_string())?;
    server.distinguished_name.push(DnType::CommonName, "llink-coordinator");
    server.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    let what = format!("the coordinator, as {}", wanted.server_names.join(", "));
    pairs.push(sign("coordinator", what, server, (now, ends), &issuer)?);
    let worker = client("spiffe://llink/worker/worker")?;
    pairs.push(sign("worker", "workers: serve no person".into(), worker, (now, ends), &issuer)?);
    for (name, role) in &wanted.users {
        let uri = format!("spiffe://llink/user/{role}/{name}");
        if crate::serve::access::identity(&uri).is_none() || ["ca", "coordinator", "worker"].contains(&name.as_str()) {
            return Err(format!("{name:?} cannot be a person's name here: letters, digits and . - _ @"));
        }
        pairs.push(sign(name, format!("{name}, who may {role}"), client(&uri)?, (now, ends), &issuer)?);
    }
    Ok(Made { authority, pairs })
}

fn client(uri: &str) -> Result<CertificateParams, String> {
    let mut params = CertificateParams::default();
    let uri = uri.try_into().map_err(|e: rcgen::Error| e.to_string())?;
    params.subject_alt_names.push(SanType::URI(uri));
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
    Ok(params)
}

fn sign(
    name: &str,
    what: String,
    mut params: CertificateParams,
    (from, to): (OffsetDateTime, OffsetDateTime),
    issuer: &Issuer<'_, KeyPair>,
) -> Result<Pair, String> {
    params.distinguished_name.push(DnType::CommonName, name);
    (params.not_before, params.not_after) = (from - CLOCK_SLACK, to);
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.use_authority_key_identifier_extension = true;
    let key = KeyPair::generate().map_err(|e| e.to_string())?;
    let certificate = params.signed_by(&key, issuer).map_err(|e| e.to_string())?;
    Ok(Pair { name: name.into(), what, certificate: certificate.pem(), key: key.serialize_pem() })
}

fn new_authority(now: OffsetDateTime, lasts: Duration) -> Result<(String, String), String> {
    let key = KeyPair::generate().map_err(|e| e.to_string())?;
    let certificate = authority_params(now, lasts)?.self_signed(&key).map_err(|e| e.to_string())?;
    Ok((certificate.pem(), key.serialize_pem()))
}

fn authority_params(now: OffsetDateTime, lasts: Duration) -> Result<CertificateParams, String> {
    let mut params = CertificateParams::default();
    params.distinguished_name = rcgen::DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, "llink's private authority");
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    (params.not_before, params.not_after) = (now - CLOCK_SLACK, now + lasts * 10);
    Ok(params)
}

/// Returns the Secrets that `k8s/` mounts, under the keys that cert-manager uses too.
pub fn kubernetes_secrets(made: &Made, namespace: &str) -> serde_json::Value {
    let items: Vec<serde_json::Value> = made
        .pairs
        .iter()
        .filter(|pair| ["coordinator", "worker"].contains(&pair.name.as_str()))
        .map(|pair| {
            serde_json::json!({
                "apiVersion": "v1",
                "kind": "Secret",
                "type": "kubernetes.io/tls",
                "metadata": {
                    "name": format!("llink-{}-tls", pair.name),
                    "namespace": namespace,
                    "labels": { "app.kubernetes.io/part-of": "llink" },
                },
                "stringData": { "tls.crt": pair.certificate, "tls.key": pair.key, "ca.crt": made.authority.0 },
            })
        })
        .collect();
    serde_json::json!({ "apiVersion": "v1", "kind": "List", "items": items })
}
