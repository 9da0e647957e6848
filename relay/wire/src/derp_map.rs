//! The relay map: which relays there are and how to reach them, in its JSON and protobuf forms.

use std::collections::BTreeMap;

use serde::{Deserialize, Deserializer, Serialize};
use url::Url;

use crate::proto::tailnet;

/// All regions, by their number.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct DerpMap {
    /// Weights by which regions are preferred.
    #[serde(
        rename = "HomeParams",
        default,
        skip_serializing_if = "Option::is_none"
    )]
    pub home_params: Option<HomeParams>,
    /// The regions; each has at least one node.
    #[serde(rename = "Regions", default, deserialize_with = "null_is_empty")]
    pub regions: BTreeMap<u16, Region>,
    /// Kept as it came.
    #[serde(
        rename = "omitDefaultRegions",
        default,
        skip_serializing_if = "is_default"
    )]
    pub omit_default_regions: bool,
}

/// Weights by which regions are preferred.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct HomeParams {
    /// Factor on a region's measured latency.
    #[serde(
        rename = "RegionScore",
        default,
        deserialize_with = "null_is_empty",
        skip_serializing_if = "BTreeMap::is_empty"
    )]
    pub region_score: BTreeMap<u16, f64>,
}

/// Relays that are as good as one another.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Region {
    /// Whether the relay is part of the control plane, reached at its address.
    #[serde(rename = "EmbeddedRelay", default)]
    pub embedded_relay: bool,
    /// Number, equal to the key in the map.
    #[serde(rename = "RegionID")]
    pub id: u16,
    /// Short name.
    #[serde(rename = "RegionCode", default)]
    pub code: String,
    /// Name to show.
    #[serde(rename = "RegionName", default)]
    pub name: String,
    /// Never chosen as a home.
    #[serde(rename = "Avoid", default, skip_serializing_if = "is_default")]
    pub avoid: bool,
    /// The relays.
    #[serde(rename = "Nodes", default, deserialize_with = "null_is_empty")]
    pub nodes: Vec<Node>,
}

/// One relay or STUN server.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Node {
    /// Name, unique in the map.
    #[serde(rename = "Name", default)]
    pub name: String,
    /// Region that it belongs to.
    #[serde(rename = "RegionID", default)]
    pub region_id: u16,
    /// Host to dial.
    #[serde(rename = "HostName", default)]
    pub host_name: String,
    /// Name in its certificate, when not the host's.
    #[serde(rename = "CertName", default, skip_serializing_if = "is_default")]
    pub cert_name: String,
    /// Address to use instead of looking the host up; `none` for no IPv4.
    #[serde(rename = "IPv4", default, skip_serializing_if = "is_default")]
    pub ipv4: String,
    /// Address to use instead of looking the host up; `none` for no IPv6.
    #[serde(rename = "IPv6", default, skip_serializing_if = "is_default")]
    pub ipv6: String,
    /// 0 stands for 3478, -1 for no STUN.
    #[serde(rename = "STUNPort", default, skip_serializing_if = "is_default")]
    pub stun_port: i32,
    /// Answers STUN and relays nothing.
    #[serde(rename = "STUNOnly", default, skip_serializing_if = "is_default")]
    pub stun_only: bool,
    /// 0 stands for 443.
    #[serde(rename = "DERPPort", default, skip_serializing_if = "is_default")]
    pub derp_port: i32,
    /// Its certificate is not checked.
    #[serde(
        rename = "InsecureForTests",
        default,
        skip_serializing_if = "is_default"
    )]
    pub insecure_for_tests: bool,
    /// Plain HTTP.
    #[serde(rename = "ForceHTTP", default, skip_serializing_if = "is_default")]
    pub force_http: bool,
    /// STUN server to ask instead.
    #[serde(rename = "STUNTestIP", default, skip_serializing_if = "is_default")]
    pub stun_test_ip: String,
    /// Answers on port 80 too.
    #[serde(rename = "CanPort80", default, skip_serializing_if = "is_default")]
    pub can_port_80: bool,
}

impl Node {
    /// Port of its STUN server, if it has one.
    pub fn stun(&self) -> Option<u16> {
        match self.stun_port {
            0 => Some(3478),
            port => u16::try_from(port).ok(),
        }
    }

    /// Address of its relay, unless it only answers STUN.
    pub fn relay_url(&self) -> Option<Url> {
        if self.stun_only {
            return None;
        }
        let scheme = if self.force_http { "http" } else { "https" };
        let port = match u16::try_from(self.derp_port) {
            Ok(0) | Err(_) => 443,
            Ok(port) => port,
        };
        let host = match self.host_name.contains(':') && !self.host_name.starts_with('[') {
            true => format!("[{}]", self.host_name),
            false => self.host_name.clone(),
        };
        Url::parse(&format!("{scheme}://{host}:{port}/derp")).ok()
    }
}

impl DerpMap {
    /// Points the control plane's own relays at the address by which the control plane was reached:
    /// where that works, the relay works.
    pub fn rewrite_embedded(&mut self, access: &Url) {
        let Some(host) = access.host_str() else {
            return;
        };
        let force_http = matches!(access.scheme(), "http" | "ws");
        let port = access.port_or_known_default().unwrap_or(443);
        let embedded = self.regions.values_mut().filter(|r| r.embedded_relay);
        for node in embedded.flat_map(|region| &mut region.nodes) {
            node.host_name = host.trim_matches(['[', ']']).to_owned();
            node.derp_port = i32::from(port);
            node.force_http = force_http;
        }
    }

    /// Whether a region can carry packets: one of its nodes is a relay.
    pub fn is_relay(&self, region: u16) -> bool {
        self.regions
            .get(&region)
            .is_some_and(|region| region.nodes.iter().any(|node| !node.stun_only))
    }

    /// Drops regions without a node, which other implementations cannot bear.
    pub fn drop_empty_regions(&mut self) {
        self.regions.retain(|_, region| !region.nodes.is_empty());
    }
}

impl From<&DerpMap> for tailnet::DerpMap {
    fn from(map: &DerpMap) -> Self {
        let score = map.home_params.iter().flat_map(|home| &home.region_score);
        let regions = map.regions.iter().filter(|(_, r)| !r.nodes.is_empty());
        Self {
            home_params: Some(tailnet::derp_map::HomeParams {
                region_score: score.map(|(id, score)| (i64::from(*id), *score)).collect(),
            }),
            regions: regions
                .map(|(id, region)| (i64::from(*id), region.into()))
                .collect(),
        }
    }
}

impl From<&Region> for tailnet::derp_map::Region {
    fn from(region: &Region) -> Self {
        Self {
            region_id: i64::from(region.id),
            embedded_relay: region.embedded_relay,
            region_code: region.code.clone(),
            region_name: region.name.clone(),
            avoid: region.avoid,
            nodes: region.nodes.iter().map(Into::into).collect(),
        }
    }
}

impl From<&Node> for tailnet::derp_map::region::Node {
    fn from(node: &Node) -> Self {
        Self {
            name: node.name.clone(),
            region_id: i64::from(node.region_id),
            host_name: node.host_name.clone(),
            cert_name: node.cert_name.clone(),
            ipv4: node.ipv4.clone(),
            ipv6: node.ipv6.clone(),
            stun_port: node.stun_port,
            stun_only: node.stun_only,
            derp_port: node.derp_port,
            insecure_for_tests: node.insecure_for_tests,
            force_http: node.force_http,
            stun_test_ip: node.stun_test_ip.clone(),
            can_port_80: node.can_port_80,
        }
    }
}

/// Regions with numbers beyond 16 bits, or without nodes, are left out.
impl From<tailnet::DerpMap> for DerpMap {
    fn from(map: tailnet::DerpMap) -> Self {
        let home = map.home_params.unwrap_or_default();
        let number = |id: i64| u16::try_from(id).ok();
        let mut regions = Self {
            home_params: (!home.region_score.is_empty()).then(|| HomeParams {
                region_score: home
                    .region_score
                    .into_iter()
                    .filter_map(|(id, score)| Some((number(id)?, score)))
                    .collect(),
            }),
            regions: map
                .regions
                .into_iter()
                .filter_map(|(id, region)| {
                    let id = number(id)?;
                    Some((id, Region::from_proto(id, region)))
                })
                .collect(),
            omit_default_regions: false,
        };
        regions.drop_empty_regions();
        regions
    }
}

impl Region {
    fn from_proto(id: u16, region: tailnet::derp_map::Region) -> Self {
        Self {
            embedded_relay: region.embedded_relay,
            id,
            code: region.region_code,
            name: region.region_name,
            avoid: region.avoid,
            nodes: region
                .nodes
                .into_iter()
                .map(|node| Node {
                    name: node.name,
                    region_id: id,
                    host_name: node.host_name,
                    cert_name: node.cert_name,
                    ipv4: node.ipv4,
                    ipv6: node.ipv6,
                    stun_port: node.stun_port,
                    stun_only: node.stun_only,
                    derp_port: node.derp_port,
                    insecure_for_tests: node.insecure_for_tests,
                    force_http: node.force_http,
                    stun_test_ip: node.stun_test_ip,
                    can_port_80: node.can_port_80,
                })
                .collect(),
        }
    }
}

fn is_default<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}

fn null_is_empty<'de, D, T>(deserializer: D) -> Result<T, D::Error>
where
    D: Deserializer<'de>,
    T: Default + Deserialize<'de>,
{
    Ok(Option::deserialize(deserializer)?.unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn embedded() -> DerpMap {
        let text = r#"{"Regions": {"999": {"EmbeddedRelay": true, "RegionID": 999,
            "RegionCode": "coder", "RegionName": "R", "Nodes": [{"Name": "999b",
            "RegionID": 999, "HostName": "old", "STUNPort": -1, "DERPPort": 1}]}}}"#;
        serde_json::from_str(text).unwrap()
    }

    #[test]
    fn embedded_relays_move_to_the_access_address() {
        let mut map = embedded();
        map.rewrite_embedded(&Url::parse("http://127.0.0.1:3000/x").unwrap());
        let node = &map.regions[&999].nodes[0];
        assert_eq!(
            node.relay_url().unwrap().as_str(),
            "http://127.0.0.1:3000/derp"
        );
        assert_eq!(node.stun(), None);
        map.rewrite_embedded(&Url::parse("https://[::1]").unwrap());
        let node = &map.regions[&999].nodes[0];
        assert_eq!((node.derp_port, node.force_http), (443, false));
        assert_eq!(node.relay_url().unwrap().as_str(), "https://[::1]/derp");
    }

    #[test]
    fn json_and_protobuf_forms_carry_the_same() {
        let map = embedded();
        let json = serde_json::to_value(&map).unwrap();
        assert_eq!(serde_json::from_value::<DerpMap>(json).unwrap(), map);
        let proto = tailnet::DerpMap::from(&map);
        assert!(proto.home_params.is_some());
        assert_eq!(DerpMap::from(proto), map);
    }

    #[test]
    fn null_lists_are_empty_and_empty_regions_are_not_sent() {
        let text = r#"{"Regions": {"5": {"RegionID": 5, "Nodes": null}}}"#;
        let map: DerpMap = serde_json::from_str(text).unwrap();
        assert!(tailnet::DerpMap::from(&map).regions.is_empty());
        let none: DerpMap = serde_json::from_str(r#"{"Regions": null}"#).unwrap();
        assert!(none.regions.is_empty());
    }
}
