"""Game whose rooms and players are objects that share others: `game.py SHELF play MOVES | show`."""

import shelve
import sys
from dataclasses import dataclass, field


@dataclass
class Room:
    """A room, with the doors to others."""

    name: str
    doors: dict[str, "Room"] = field(default_factory=dict, repr=False)
    things: list[str] = field(default_factory=list)


@dataclass
class Game:
    """A player in a room of a house."""

    rooms: list[Room]
    place: Room
    bag: set[str] = field(default_factory=set)


def new_game() -> Game:
    """Return a game with two rooms."""
    hall, cellar = Room("hall", things=["lamp"]), Room("cellar", things=["gold", "rope"])
    hall.doors["down"], cellar.doors["up"] = cellar, hall
    return Game([hall, cellar], hall)


def main(filename: str, command: str, *moves: str) -> None:
    """Go on with the saved game."""
    with shelve.open(filename, writeback=True) as db:
        if "game" not in db:
            db["game"] = new_game()
            db["scores"] = [[0, 0]] * 2
        game: Game = db["game"]
        for move in moves:
            if move in game.place.doors:
                game.place = game.place.doors[move]
            elif game.place.things:
                game.bag.add(game.place.things.pop())
                db["scores"][0][1] += 1
        if command == "show":
            print(game.place, sorted(game.bag), game.rooms, game.place in game.rooms, db["scores"])
            print(any(room is game.place for room in game.rooms), game.rooms[0].doors["down"] is game.rooms[1])


if __name__ == "__main__":
    main(*sys.argv[1:])
