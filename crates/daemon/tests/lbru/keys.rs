//! What has a key is done once.

use librorum_rpc::frame::{Header, Kind, Opcode};
use librorum_rpc::proto::v1;
use prost::Message;

use crate::harness::{World, result};

fn make(path: &str) -> Vec<u8> {
    let path = path.to_owned().into();
    v1::MakeDirectoryRequest { path, mode: 0o755, ..Default::default() }.encode_to_vec()
}

#[test]
fn the_same_key_gets_the_first_answer_over_any_connection() {
    let world = World::new();
    let mut first = world.greeted();
    let key = Some([7; 16]);
    let id = first.ask_with(Opcode::MAKE_DIRECTORY, 0, key, &make("folder"), &[]);
    let answer = result(first.answer(id)).unwrap().meta;
    drop(first);
    let mut second = world.greeted();
    for _ in 0..3 {
        let id = second.ask_with(Opcode::MAKE_DIRECTORY, 0, key, &make("folder"), &[]);
        assert_eq!(result(second.answer(id)).unwrap().meta, answer);
    }
    let id = second.ask_with(Opcode::MAKE_DIRECTORY, 0, None, &make("folder"), &[]);
    assert_eq!(result(second.answer(id)).unwrap_err().kind, "AlreadyExists");
    let id = second.ask_with(Opcode::MAKE_DIRECTORY, 0, key, &make("other"), &[]);
    assert_eq!(result(second.answer(id)).unwrap_err().kind, "InvalidInput");
    assert_eq!(second.stat("other").unwrap_err().kind, "NotFound");
}

#[test]
fn a_failure_is_an_answer_too() {
    let world = World::new();
    let mut client = world.greeted();
    let key = Some([9; 16]);
    let id = client.ask_with(Opcode::MAKE_DIRECTORY, 0, key, &make("no/folder"), &[]);
    assert_eq!(result(client.answer(id)).unwrap_err().kind, "NotFound");
    let id = client.ask(Opcode::MAKE_DIRECTORY, &make("no"), &[]);
    assert!(result(client.answer(id)).is_ok());
    let id = client.ask_with(Opcode::MAKE_DIRECTORY, 0, key, &make("no/folder"), &[]);
    assert_eq!(result(client.answer(id)).unwrap_err().kind, "NotFound");
}

#[test]
fn many_at_once_are_one() {
    let world = World::new();
    for round in 0..20_u8 {
        let mut clients = [world.greeted(), world.greeted(), world.greeted()];
        let path = format!("folder-{round}");
        let key = Some([round; 16]);
        let mut ids = Vec::new();
        for client in &mut clients {
            for _ in 0..10 {
                let id = client.ask_with(Opcode::MAKE_DIRECTORY, 0, key, &make(&path), &[]);
                ids.push(id);
            }
        }
        let mut answers = Vec::new();
        for (at, id) in ids.into_iter().enumerate() {
            answers.push(result(clients[at / 10].answer(id)).unwrap().meta);
        }
        assert!(answers.iter().all(|answer| *answer == answers[0]));
    }
}

#[test]
fn one_that_is_withdrawn_leaves_its_place_to_the_next() {
    let world = World::new();
    let mut client = world.greeted();
    let mut other = world.greeted();
    for round in 0..50_u8 {
        let path = format!("folder-{round}");
        let key = Some([round; 16]);
        let id = client.ask_with(Opcode::MAKE_DIRECTORY, 0, key, &make(&path), &[]);
        let same = other.ask_with(Opcode::MAKE_DIRECTORY, 0, key, &make(&path), &[]);
        client.frame(Header::new(Kind::Cancel, Opcode::NONE, id), &[], &[]).unwrap();
        if let Err(error) = result(client.answer(id)) {
            assert_eq!(error.kind, "Cancelled");
        }
        assert!(result(other.answer(same)).is_ok());
        assert!(other.stat(&path).is_ok());
    }
}
