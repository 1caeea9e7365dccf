//! The rules of the house: dependencies point one way, libraries are silent, terms are compatible.

use suite::{arrows, licences, tools};

#[test]
fn arrows_point_one_way_and_libraries_are_silent() {
    let wrong = arrows::wrong_arrows(&tools::workspace()).unwrap();
    assert!(wrong.is_empty(), "\n{}", wrong.join("\n"));
}

#[test]
fn every_dependency_has_terms_we_can_take() {
    let packages = match licences::packages() {
        Ok(packages) => packages,
        Err(why) => return tools::skip("the licences of the dependencies", &why),
    };
    assert!(packages.len() > 5, "cargo metadata lists almost nothing");
    let refused = |p: &&licences::Package| !p.licence.as_deref().is_some_and(licences::allowed);
    let bad: Vec<String> = packages
        .iter()
        .filter(refused)
        .map(|p| format!("{}: {}", p.name, p.licence.as_deref().unwrap_or("no licence stated")))
        .collect();
    assert!(bad.is_empty(), "\n{}", bad.join("\n"));
    tools::say(&format!("{} packages, all on terms we can take", packages.len()));
}
