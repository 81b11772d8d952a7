//! Map subscriptions in the Protobuf form.

use super::super::maps::{
    RULES, a_map_is_recovered_on_any_instance, a_map_without_values_gets_the_first_one,
    every_map_ends_with_the_same_values, the_values_of_a_map_come_by_pages_and_then_what_has_changed_since,
};
use crate::support::brokers::promises;
use crate::support::centrifuge_client::Form;
use crate::support::instance::Options;

promises!(
    Options::default().rules(RULES).form(Form::Protobuf);
    the_values_of_a_map_come_by_pages_and_then_what_has_changed_since,
    a_map_is_recovered_on_any_instance,
    every_map_ends_with_the_same_values,
    a_map_without_values_gets_the_first_one,
);
