"""Values that the demo model's training never drew: names, places and the like to be remembered.

Half are real words, half are made of syllables that are not the training's. What training may draw
is decided by `examples.demo_training`: its lists, and made-up words and numbers whose checksum it
does not hold out. The easy mistake is to add a word without asking `never_drawn`: the lists below
are candidates, and only those that pass are used.
"""

from __future__ import annotations

from random import Random

from examples.demo_training import words
from examples.demo_training.inventory import is_held_out

KINDS = ("name", "city", "pet", "number", "colour", "food")

_LONGEST_MADE_UP = 12  # of the training's made-up words
_DRAWN = {
    word.lower()
    for listed in (
        *(words.NAMES, words.CITIES, words.PETS, words.COLOURS, words.FOODS, words.JOBS),
        *(words.WORDS, words.ANIMALS, words.PEOPLE, words.FAVOURITES),
    )
    for word in listed
}
_HELD_OUT = {word.lower() for listed in words.HELD_OUT.values() for word in listed}


def _words(text: str) -> list[str]:
    return text.split()


_CANDIDATES = {
    "name": _words("""
    Adelaide Agatha Ambrose Anselm Araminta Aurelio Balthazar Barnaby Bartholomew Basil Beatrice
    Benedict Bertrand Blanche Bronwyn Caspian Cassandra Cecily Celeste Clement Clementine Constance
    Cordelia Cornelius Cosima Cressida Cuthbert Cyprian Cyril Damaris Daphne Delphine Desmond
    Dominic Dorothea Drusilla Ebenezer Eleanor Eliezer Elodie Eloise Emmeline Ephraim Ernestine
    Eugene Eulalia Eustace Fabian Faustina Felicity Ferdinand Fiona Florian Francesca Frederica
    Gavin Genevieve Geraldine Gideon Gilbert Godfrey Guinevere Gulliver Gwendolyn Hadrian Hamish
    Harriet Helena Henrietta Hermione Hilary Horatio Hortense Hubert Humphrey Hyacinth Ignatius
    Imogen Isabeau Isadora Isidore Jacinta Jasper Jemima Jocasta Jocelyn Josephine Julius Justine
    Kirsten Lavinia Lazarus Leander Leopold Lionel Lorenzo Lucinda Ludmila Lysander Magnus Marcella
    Marguerite Matilda Maximilian Melchior Melisande Mildred Millicent Minerva Mirabel Montague
    Mordecai Mortimer Muriel Nathan Nehemiah Nicodemus Octavia Olympia Ophelia Orlando Orson Osbert
    Osric Ottoline Percy Peregrine Perpetua Petronella Philippa Phineas Phoebe Prudence Ptolemy
    Quincy Randolph Raphael Reginald Rhiannon Roderick Roland Rosalind Rosamund Rowena Rupert
    Sabrina Salome Sebastian Seraphina Sigmund Silas Solomon Sophronia Sybil Sylvester Tabitha
    Tamsin Tarquin Thaddeus Thelonious Theodora Theresa Tobias Tristan Ulrich Valentina Valerie
    Verity Vikram Vincenzo Viola Virgil Vivienne Wilfred Wilhelmina Winifred Winston Wolfgang Xenia
    Yolanda Zachary Zebedee Zenobia Zuleika
    """),
    "city": _words("""
    Aachen Aarhus Aberdeen Adelaide Albuquerque Aleppo Alicante Almaty Amiens Anchorage Angers
    Antalya Arezzo Arles Asheville Ashgabat Astana Asuncion Augsburg Avignon Baku Bamako Bangalore
    Bangui Banjul Bari Basra Bayonne Beirut Belgrade Benghazi Bilbao Bishkek Bissau Blackpool
    Bolzano Boulder Bratislava Brazzaville Bremen Brno Bucharest Bujumbura Burgos Caen Cagliari
    Calgary Caracas Castries Catania Cayenne Charleroi Chester Chisinau Cincinnati Cleveland
    Colombo Conakry Constanta Cordoba Cork Cremona Cusco Damascus Darwin Debrecen Detroit Dijon
    Djibouti Dodoma Dortmund Dover Dundee Dunedin Dushanbe Eindhoven Erfurt Essen Exeter Fargo
    Ferrara Freetown Fresno Gaborone Galway Gdansk Genoa Georgetown Gibraltar Graz Grenoble
    Groningen Guadalajara Haarlem Halifax Hanover Harare Heidelberg Hobart Honolulu Hull Innsbruck
    Inverness Islamabad Jaipur Jerusalem Juneau Kampala Kassel Kathmandu Khartoum Kigali Kingston
    Kinshasa Klagenfurt Kosice Kuching Kyrenia Lausanne Leiden Libreville Limerick Linz Lisbon
    Ljubljana Lome Luanda Lucerne Lugano Lusaka Luxor Maastricht Macau Malabo Managua Mannheim
    Maputo Maribor Maseru Memphis Minsk Mombasa Monrovia Montevideo Montpellier Murcia Nagoya
    Nassau Niamey Nicosia Norwich Nottingham Nuremberg Odense Omaha Oran Orlando Ostend Ottumwa
    Oviedo Padua Pamplona Paramaribo Parma Perugia Phuket Pisa Plovdiv Plymouth Podgorica Poznan
    Praia Pula Quebec Reims Rennes Riyadh Rosario Rostock Rotterdam Rouen Sacramento Salerno
    Salzburg Samara Santander Santiago Sapporo Sarajevo Savannah Siena Skopje Sofia Split Stavanger
    Strasbourg Sucre Surabaya Suva Swansea Szeged Tacoma Tampa Tangier Tashkent Tbilisi Tegucigalpa
    Thimphu Timbuktu Tirana Toledo Trieste Tripoli Tromso Trondheim Tulsa Ulm Uppsala Utica Vaduz
    Valletta Verona Victoria Vientiane Wakefield Wellington Winnipeg Wroclaw Xanten Yakutsk
    Yaounde Yerevan Zagreb Zaragoza Zwolle
    """),
    "pet": _words("""
    Ajax Alfie Angus Archie Argos Aslan Azrael Bagheera Bailey Bambi Banjo Barkley Basil Beanie
    Benji Bingo Blackie Boomer Bosun Bramble Brandy Brutus Bubble Buckley Bumble Buster Butterscotch
    Caramel Cassie Casper Champ Chaplin Chester Chestnut Chico Cinders Clover Comanche Crackers
    Crumpet Dasher Dexter Digger Dixie Domino Dougal Dumpling Dusty Elvis Fang Figaro Flicka Fudge
    Fury Galahad Gandalf Gatsby Gizzard Gromit Gulliver Hamlet Harley Havoc Hazelnut Hector Hobbes
    Huckle Hunter Inky Jasper Jigsaw Jumper Kaiser Kipper Laika Lassie Leopold Lightning Maggie
    Marmalade Marmite Maverick Merlin Midnight Minnow Mistral Moby Monty Mopsy Morpheus Mowgli
    Muesli Mungo Mustard Napoleon Nero Nibbles Nimbus Noodle Nutmeg Oreo Orion Otto Paddington
    Parsley Pebbles Peppermint Percy Pharaoh Piglet Pluto Pogo Popeye Porthos Poppet Pudding Puffin
    Quaver Rascal Reggie Remus Ribbons Ringo Roger Rolo Romeo Rufus Saffron Salem Samson Sasquatch
    Scamp Scooter Scruffy Sherlock Slipper Snickers Snuffles Sooty Sparrow Spike Sprocket Stormy
    Sultan Taco Taffy Tango Teddy Thistle Tigger Timber Tinker Toby Toffee Topsy Trixie Trotter
    Truffle Tulip Twiggy Twinkle Umber Velcro Velvet Vesper Waldo Wally Whiskey Willow Winnie
    Woody Zelda Zephyr Zigzag
    """),
    "colour": _words("""
    alabaster almond amaranth amethyst apricot aqua aquamarine asparagus aubergine auburn bistre
    blush bone brick brindle buff burgundy butterscotch cadmium camel caramel cardinal carmine
    carnelian celadon celeste cerise cerulean champagne charcoal chartreuse cherry chestnut cinnabar
    cinnamon claret cobalt cochineal coffee cornflower cranberry damask denim dun ebony ecru
    eggplant emerald fawn flax fuchsia gamboge garnet ginger gunmetal heather heliotrope henna
    honeydew indian iris ivy jade jasmine jet lemon linen mahogany malachite mandarin marigold
    mocha mulberry mustard oatmeal ochre onyx opal orchid oxblood papaya pearl periwinkle
    persimmon petrol pewter pine pistachio platinum puce pumpkin quartz raspberry rosewood russet
    rust saffron sand sangria sapphire seashell sepia sienna slate steel straw sunflower tangerine
    taupe tawny thistle titian topaz turmeric ultramarine umber vanilla vermilion verdigris
    walnut watermelon wheat wine wisteria zinc
    """),
    "food": _words("""
    anchovies antipasto apricots artichokes asparagus aubergines avocados baguettes baklava bagels
    barley beetroot bibimbap biryani blackberries blueberries borscht bouillabaisse bratwurst
    brioche bruschetta bulgur calamari cannelloni capers cashews cassoulet cauliflower caviar celery
    ceviche chapati cheddar chickpeas chorizo chowder churros clams coconut coleslaw couscous
    cranberries crumpets cucumbers custard dates dolmades doughnuts duck eclairs edamame eels
    empanadas enchiladas escargots fajitas fennel feta figs flapjacks focaccia fondue frittata
    gazpacho gherkins gnocchi gooseberries gorgonzola granola grapefruit guacamole gumbo haddock
    haggis halibut halloumi hazelnuts herring houmous jambalaya jellybeans kale kedgeree kimchi
    kiwis kohlrabi lamb laksa lamingtons leeks lentejas limes linguine liquorice lychees macaroni
    macaroons mackerel marzipan meringue minestrone moussaka mozzarella mussels naan nectarines
    oysters pakoras panettone papaya paprika parmesan parsnips pastrami pavlova pecans penne
    pesto pheasant pierogi pineapple pistachios plaice polenta pomegranates pomelo porridge
    poutine prawns prunes pumpernickel quail quinoa rabbit radicchio radishes raisins ratatouille
    ravioli rhubarb rigatoni rocket saffron sardines sashimi sauerkraut sauternes scallops schnitzel
    scones semolina sorbet souffle squid stollen stroganoff strudel succotash swede tabbouleh
    tagliatelle tahini tamales tangerines tapas tapenade teriyaki tiramisu tortellini trifle
    truffles turnips tzatziki vanilla veal venison vichyssoise watercress watermelon whitebait
    yams zabaglione
    """),
}
_ONSETS = _words("""
b br c ch d dr dw f fl fr g gl gr h j k kl l m n p pl pr qu r s sh sk sl sn st sv
t th tr v w wr y z
""")
_NUCLEI = _words("""
a e i o u aa ee ei ia ie oi oo ou ua uo
""")
_CODAS = _words("""
b ck d ft g k l lb lk lm lp lsh m mp n nd ng nk nt p r rb rd rf rk rl rm rn rsh
rv s sk st t x
""")
_LOWER_KINDS = ("colour", "food")
_ACCENTED = _words("""
Zoë Chloë Jörg Björk Søren Åsa Łukasz Ångström Héloïse François Beyoncé Günther Müller Jürgen Inès
Renée Noël Gaël Siân Niamh Øystein Žofia Šárka Ramón Ibáñez Peña Núñez Tomé João Çelik Ömer
""")


def never_drawn(word: str) -> bool:
    """Says whether the demo model's training cannot have drawn a word or number."""
    lower = word.lower()
    if lower in _DRAWN:
        return False
    return lower in _HELD_OUT or len(word) > _LONGEST_MADE_UP or is_held_out(lower)


REAL = {kind: [w for w in listed if never_drawn(w)] for kind, listed in _CANDIDATES.items()}
"""Real words by kind, none of which training drew."""


def value(rng: Random, kind: str) -> str:
    """Returns a value of a kind (see `KINDS`) that training never drew."""
    if kind == "number":
        return number(rng)
    if rng.random() < 0.5:
        return rng.choice(REAL[kind])
    made = made_up(rng)
    return made if kind in _LOWER_KINDS else made.capitalize()


def other_value(rng: Random, kind: str, *taken: str) -> str:
    """Returns a value that is none of those taken."""
    while True:
        found = value(rng, kind)
        if found not in taken:
            return found


def number(rng: Random) -> str:
    """Returns a whole number of two to five digits."""
    while True:
        digits = rng.randint(2, 5)
        found = str(rng.randrange(10 ** (digits - 1), 10**digits))
        if never_drawn(found):
            return found


def made_up(rng: Random) -> str:
    """Returns a lower-case word of two or three syllables."""
    while True:
        syllables = [
            rng.choice(_ONSETS) + rng.choice(_NUCLEI) + (rng.choice(_CODAS) if closed else "")
            for closed in (rng.random() < 0.5 for _ in range(rng.choice([2, 2, 3])))
        ]
        found = "".join(syllables)
        if len(found) <= 10 and never_drawn(found):
            return found


def letters(rng: Random) -> str:
    """Returns four to eight lower-case letters in any order."""
    while True:
        found = "".join(rng.choices("abcdefghijklmnopqrstuvwxyz", k=rng.randint(4, 8)))
        if never_drawn(found):
            return found


def accented(rng: Random) -> str:
    """Returns a name with letters beyond ASCII, of which training has none."""
    return rng.choice(_ACCENTED)
