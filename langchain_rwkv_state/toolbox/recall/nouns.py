"""Words to be remembered: names, cities, pets, colours and foods that are real, and not too common.

None of them was drawn in the training of the built-in model, so that what it gives back it copied
from a state and not from its weights; a test holds the lists to that. The easy mistake is to add a
word without running that test.
"""

from __future__ import annotations


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


WORDS: dict[str, tuple[str, ...]] = {
    "name": _words("""
    Aurelio Barnaby Bartholomew Beatrice Benedict Bertrand Cassandra Clementine Daphne
    Dominic Eleanor Emmeline Eulalia Fiona Gavin Geraldine Gulliver Helena Hilary
    Humphrey Imogen Jacinta Jasper Jemima Kirsten Lionel Lorenzo Mildred Nathan Ophelia
    Orson Percy Quincy Roland Rupert Sabrina Sebastian Tabitha Tamsin Tobias Ulrich
    Valerie Verity Vikram Winston Wolfgang Xenia Yolanda Zachary
    """),
    "city": _words("""
    Albuquerque Arles Astana Avignon Bilbao Bishkek Bissau Cagliari Chester Chisinau
    Constanta Cork Damascus Dijon Erfurt Exeter Fargo Gdansk Hobart Hull Innsbruck
    Jaipur Kingston Kosice Lisbon Lugano Maastricht Mannheim Memphis Norwich Odense
    Ottumwa Paramaribo Perugia Quebec Reims Rotterdam Salzburg Tashkent Tromso Ulm
    Victoria Wellington Winnipeg Xanten Yerevan Zagreb
    """),
    "pet": _words("""
    Alfie Bagheera Bailey Banjo Barkley Bosun Cassie Chester Clover Dexter Dixie Fang
    Figaro Gulliver Harley Hazelnut Hector Inky Jasper Jigsaw Jumper Kipper Lightning
    Marmalade Merlin Morpheus Nimbus Noodle Oreo Percy Porthos Quaver Ringo Roger
    Saffron Scooter Sooty Tigger Toffee Umber Velcro Wally
    """),
    "colour": _words("""
    apricot aqua burgundy cerise chartreuse cherry denim eggplant emerald fuchsia
    heliotrope jade mulberry ochre puce quartz rust saffron sepia sienna tawny umber
    verdigris walnut wine zinc
    """),
    "food": _words("""
    anchovies bagels blueberries bouillabaisse bratwurst brioche bulgur ceviche
    chickpeas chorizo clams cranberries cucumbers fondue gnocchi guacamole hazelnuts
    herring lentejas lychees moussaka oysters panettone pineapple radishes ravioli
    rhubarb saffron schnitzel swede tangerines tapas tortellini trifle venison
    watercress
    """),
}
"""Words by kind."""
