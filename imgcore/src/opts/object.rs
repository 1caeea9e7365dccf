//! `--object`: what images refer to by an identifier.

use super::OptError;
use super::json;
use super::list::{self, FirstItem};
use super::secret::{self, SecretDef, check_id};
use super::throttle::ThrottleDef;
use super::tls::{self, TlsDef};
use super::tree::Flat;

/// An object, not yet made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ObjectDef {
    /// A passphrase.
    Secret(SecretDef),
    /// Limits.
    ThrottleGroup(ThrottleDef),
    /// Certificates and keys.
    Tls(TlsDef),
}

/// Parses the argument of `--object`: a list, or a JSON object.
pub fn parse(text: &str) -> Result<ObjectDef, OptError> {
    let mut flat = if text.starts_with('{') {
        Flat::from_tree(json::parse(text)?)?
    } else {
        Flat::from_items(&list::parse(text, FirstItem::ValueOf("qom-type")))
    };
    let kind = flat.take_text("qom-type").unwrap_or_default();
    if let Some(refusal) = tls::refused(&kind) {
        return Err(refusal);
    }
    if !matches!(kind.as_str(), "throttle-group" | "tls-creds-x509") {
        return secret::parse(text).map(ObjectDef::Secret);
    }
    let id = flat.take_text("id").ok_or_else(|| OptError::new("Parameter 'id' is missing"))?;
    check_id(&id)?;
    let def = if kind == "throttle-group" {
        ObjectDef::ThrottleGroup(ThrottleDef::take(id, &mut flat)?)
    } else {
        ObjectDef::Tls(TlsDef::take(id, &mut flat)?)
    };
    if let Some((key, _)) = flat.iter().next() {
        return Err(OptError::new(format!("Parameter '{key}' is unexpected")));
    }
    Ok(def)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn objects() {
        assert!(matches!(parse("secret,id=a,data=b"), Ok(ObjectDef::Secret(_))));
        let text = r#"{"qom-type":"throttle-group","id":"t","limits":{"iops-total":5}}"#;
        let Ok(ObjectDef::ThrottleGroup(def)) = parse(text) else { panic!("{:?}", parse(text)) };
        assert_eq!(def.limits[3].average, 5);
        let message = |text: &str| parse(text).unwrap_err().message;
        assert_eq!(message("throttle-group,x-bps-total=1"), "Parameter 'id' is missing");
        assert_eq!(message("throttle-group,id=t,foo=1"), "Parameter 'foo' is unexpected");
        assert_eq!(
            message("throttle-group,id=t,x-bps-total=-1"),
            "Property values cannot be negative"
        );
        assert_eq!(
            message("throttle-group,id=t,x-bps-total=1k"),
            "Parameter 'x-bps-total' expects integer"
        );
        assert!(
            message("throttle-group,id=t,x-bps-total=1,x-bps-read=1")
                .contains("cannot be used at the same time")
        );
        assert!(message("throttle-group,id=t,x-bps-total-max=1").contains("require corresponding"));
        assert!(message("authz-list,id=t").contains("not supported"));
    }
}
